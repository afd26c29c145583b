"""Facts about this machine, gathered without torch and in milliseconds. No decisions here."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from qmd_remote.presets import BUNDLED, bundled_path


@dataclass(frozen=True)
class Hardware:
    """What the plan needs to know: `bundled` maps a model id to the file or folder its package carries."""

    nvidia: bool
    apple_gpu: bool
    vllm: bool
    transformers_serve: bool
    server: bool
    bundled: dict[str, Path]

    @property
    def gpu(self) -> bool:
        """Whether there is a GPU that torch could use."""
        return self.nvidia or self.apple_gpu


def probe() -> Hardware:
    """Look at the machine."""
    return Hardware(
        nvidia=Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
        apple_gpu=platform.system() == "Darwin" and platform.machine() == "arm64",
        vllm=_installed("vllm"),
        transformers_serve=_installed("transformers", "torch", "fastapi", "uvicorn", "openai", "accelerate"),
        server=_installed("torch", "sentence_transformers", "fastapi", "uvicorn", "orjson"),
        bundled={model: path for model in BUNDLED if (path := bundled_path(model)) is not None},
    )


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
