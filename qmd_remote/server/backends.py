"""Which forward pass a network gets on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qmd_remote import paths
from qmd_remote.errors import PrerequisiteError
from qmd_remote.server import openvino_forward
from qmd_remote.server.device import Device
from qmd_remote.server.forward import Forward, Network, PaddedForward
from qmd_remote.server.openvino_runtime import runtime


def _require_openvino() -> None:
    try:
        runtime()
    except ImportError as error:
        raise PrerequisiteError(
            f"backend=openvino: its library cannot be loaded: {error}",
            hint="install it again: pip install --force-reinstall openvino; or use --backend auto",
            code="backend.unusable",
        ) from None


def forward_for(network: Network, device: Device, folder: Path) -> Forward:
    """The fastest way to compute `network`, loaded from `folder`, on `device` that gives the same answers.

    Raises PrerequisiteError when OpenVINO was asked for by name and its library cannot be loaded.
    """
    if device.backend == "openvino":
        if device.named_backend:
            _require_openvino()
        found = openvino_forward.attempt(
            network, folder, cache=paths.cache_dir(), dtype=device.dtype, threads=device.threads
        )
        if found is not None:
            return found
    if device.name == "mps":
        return PaddedForward(network)  # where a call of SDPA for every few rows has not been measured
    # heavy with torch and its like, which who only configures does without
    from qmd_remote.server.linears import prepare_for_cpu
    from qmd_remote.server.packed import forward_without_padding

    if device.name == "cpu":
        dtype: Literal["bfloat16", "float32"] = "bfloat16" if device.dtype == "bfloat16" else "float32"
        # a rerank never has an input of a few tokens only
        prepare_for_cpu(network.module, dtype, short=network.output == "sentence_embedding")

    return forward_without_padding(network, device.dtype)
