"""The events of a pull → how far it is, layer by layer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qmd_remote.launch.engine import PullProgress

HERE = frozenset({"Already exists", "Pull complete"})
FETCHED = frozenset({"Download complete", "Verifying Checksum", "Extracting", *HERE})
# what is said of layers alone; engines with containerd's image store tell of manifests and configurations too
OF_LAYERS = frozenset({"Pulling fs layer", "Extracting", *HERE})
ENDS = ("Digest:", "Status:")  # what an engine says when it has all layers


@dataclass
class _Layer:
    status: str = ""
    fetched: int = 0
    size: int = 0
    unpacked: int = 0
    unpacking_s: int = 0
    is_layer: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is a layer, as far as one knows: what is fetched, and never was called one, is none."""
        return self.is_layer or self.status not in FETCHED


class Layers:
    """Folds events as the engine sends them; a layer's size is known from its first byte on."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._ended = False

    def add(self, event: Mapping[str, Any]) -> PullProgress:
        """Take one event; returns the state after it. Events about no layer change nothing but the end."""
        name, status = event.get("id"), str(event.get("status") or "")
        if name and status and not status.startswith("Pulling from"):
            self._take(self._layers.setdefault(str(name), _Layer()), status, event.get("progressDetail") or {})
        elif status.startswith(ENDS):
            self._ended = True
        return self.progress()

    def progress(self) -> PullProgress:
        """The state now: bytes that were fetched while any layer is under way, then bytes that were unpacked."""
        layers = {name: layer for name, layer in self._layers.items() if layer.counts}
        here = sum(layer.status in HERE for layer in layers.values())
        coming = [layer for layer in layers.values() if layer.status not in FETCHED]
        sized = [layer for layer in layers.values() if layer.size]
        total = sum(layer.size for layer in sized)
        under_way = tuple(
            (name, layer.status, layer.unpacked if layer.status == "Extracting" else layer.fetched, layer.size)
            for name, layer in layers.items()
            if layer.size and layer.status not in HERE
        )
        if self._ended:
            return PullProgress(total, total, len(layers), len(layers), "verifying")
        if coming:
            moving = any(layer.status == "Downloading" for layer in coming)
            done = sum(layer.fetched for layer in sized)
            return PullProgress(
                done,
                total,
                here,
                len(layers),
                "downloading" if moving or done else "waiting",
                under_way,
                unsized=sum(not layer.size for layer in coming),
            )
        # layers that are here are told before those that are not, so that all of them may be no more than the first
        if here == len(layers):
            came = any(layer.status == "Pull complete" for layer in layers.values())
            return PullProgress(total, total, here, here, "verifying" if came else "waiting")
        done = sum(layer.size if layer.status in HERE else layer.unpacked for layer in sized)
        unpacking_s = max((layer.unpacking_s for layer in layers.values() if layer.status == "Extracting"), default=0)
        return PullProgress(done, total, here, len(layers), "unpacking", under_way, unpacking_s=unpacking_s)

    @staticmethod
    def _take(layer: _Layer, status: str, detail: Mapping[str, Any]) -> None:
        layer.status = status
        layer.is_layer = layer.is_layer or status in OF_LAYERS
        current, size, units = detail.get("current"), detail.get("total"), detail.get("units")
        if isinstance(size, int) and size > 0 and not units:
            layer.size = size
        if isinstance(current, int) and status == "Extracting":
            if not units:
                layer.unpacked = current
            elif units == "s":
                layer.unpacking_s = max(current, 0)
        elif isinstance(current, int) and status == "Downloading":
            layer.fetched = current
        if status in FETCHED:
            layer.fetched = layer.size
        if status in HERE:
            layer.unpacked = layer.size
        # engines tell -1 for what they do not know, and a size that was another one before
        layer.fetched = min(max(layer.fetched, 0), layer.size)
        layer.unpacked = min(max(layer.unpacked, 0), layer.size)
