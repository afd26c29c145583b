"""Which forward pass a network gets on a device."""

from __future__ import annotations

from pathlib import Path

from qmd_remote.server.device import Device
from qmd_remote.server.forward import Forward, Network, PaddedForward


def forward_for(network: Network, device: Device, folder: Path) -> Forward:
    """The fastest way to compute `network`, loaded from `folder`, on `device` that gives the same answers."""
    del device, folder
    return PaddedForward(network)
