"""Facts about this machine, gathered without torch and in milliseconds. No decisions here."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from qmd_remote.launch import gpu
from qmd_remote.launch.gpu import Gpu, SystemMemory
from qmd_remote.presets import BUNDLED, bundled_path

NO_MEMORY = SystemMemory()  # the system does not tell
NVIDIA_DRIVER = Path("/proc/driver/nvidia")


@dataclass(frozen=True)
class Hardware:
    """What the plan needs to know.

    `bundled` maps a model id to the file or folder its package carries; `gpu_names` is what the NVIDIA driver calls
    its GPUs, as far as it says so in /proc; `gpus` are those that nvidia-smi tells of, with their memory.
    """

    nvidia: bool
    apple_gpu: bool
    vllm: bool
    transformers_serve: bool
    server: bool
    bundled: dict[str, Path]
    gpu_names: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    memory: SystemMemory = NO_MEMORY

    @property
    def gpu(self) -> bool:
        """Whether there is a GPU that torch could use."""
        return self.nvidia or self.apple_gpu


def probe(driver: Path = NVIDIA_DRIVER) -> Hardware:
    """Look at the machine. `driver` is the folder in which NVIDIA's kernel driver tells of itself."""
    names = _gpu_names(driver)
    nvidia = (driver / "version").exists() or shutil.which("nvidia-smi") is not None
    return Hardware(
        nvidia=nvidia,
        apple_gpu=platform.system() == "Darwin" and platform.machine() == "arm64",
        vllm=_installed("vllm"),
        transformers_serve=_installed("transformers", "torch", "fastapi", "uvicorn", "openai", "accelerate"),
        server=_installed("torch", "sentence_transformers", "fastapi", "uvicorn", "orjson"),
        bundled={model: path for model in BUNDLED if (path := bundled_path(model)) is not None},
        gpu_names=names,
        gpus=(gpu.query() or gpu.by_names(names)) if nvidia else (),
        memory=gpu.system_memory(),
    )


def _gpu_names(driver: Path) -> tuple[str, ...]:
    """The `Model:` of each GPU, e.g. "NVIDIA GB10"."""
    names: list[str] = []
    for file in sorted(driver.glob("gpus/*/information")):
        try:
            names += re.findall(r"^Model:\s*(\S.*?)\s*$", file.read_text(errors="replace"), re.MULTILINE)
        except OSError:  # a GPU that has just fallen off the bus
            continue
    return tuple(names)


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
