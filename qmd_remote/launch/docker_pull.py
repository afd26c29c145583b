"""The events of a pull → how far it is, layer by layer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qmd_remote.launch.engine import PullProgress

HERE = frozenset({"Already exists", "Pull complete"})
FETCHED = frozenset({"Download complete", "Verifying Checksum", "Extracting", *HERE})


@dataclass
class _Layer:
    status: str = ""
    fetched: int = 0
    size: int = 0
    unpacked: int = 0


class Layers:
    """Folds events as the engine sends them; a layer's size is known from its first byte on."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def add(self, event: Mapping[str, Any]) -> PullProgress:
        """Take one event; returns the state after it. Events about no layer change nothing."""
        name, status = event.get("id"), str(event.get("status") or "")
        if name and status and not status.startswith("Pulling from"):
            self._take(self._layers.setdefault(str(name), _Layer()), status, event.get("progressDetail") or {})
        return self.progress()

    def progress(self) -> PullProgress:
        """The state now: bytes that were fetched while any layer is under way, then bytes that were unpacked."""
        layers = list(self._layers.values())
        here = sum(layer.status in HERE for layer in layers)
        coming = [layer for layer in layers if layer.status not in FETCHED]
        sized = [layer for layer in layers if layer.size]
        total = sum(layer.size for layer in sized)
        under_way = tuple(
            (name, layer.status, layer.unpacked if layer.status == "Extracting" else layer.fetched, layer.size)
            for name, layer in self._layers.items()
            if layer.size and layer.status not in HERE
        )
        if coming:
            moving = any(layer.status == "Downloading" for layer in coming)
            done = sum(layer.fetched for layer in sized)
            return PullProgress(
                done, total, here, len(layers), "downloading" if moving or done else "waiting", under_way
            )
        if here < len(layers):
            done = sum(layer.size if layer.status in HERE else layer.unpacked for layer in sized)
            return PullProgress(done, total, here, len(layers), "unpacking", under_way)
        return PullProgress(total, total, here, len(layers), "verifying" if layers else "waiting")

    @staticmethod
    def _take(layer: _Layer, status: str, detail: Mapping[str, Any]) -> None:
        layer.status = status
        current, size = detail.get("current"), detail.get("total")
        if isinstance(size, int) and size > 0:
            layer.size = size
        if isinstance(current, int) and status == "Extracting":
            layer.unpacked = current
        elif isinstance(current, int) and status == "Downloading":
            layer.fetched = current
        if status in FETCHED:
            layer.fetched = layer.size
        if status in HERE:
            layer.unpacked = layer.size
        # engines tell -1 for what they do not know, and a size that was another one before
        layer.fetched = min(max(layer.fetched, 0), layer.size)
        layer.unpacked = min(max(layer.unpacked, 0), layer.size)
