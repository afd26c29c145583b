"""The memory of the device that computes, asked in a way that holds nobody up."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from qmd_remote.server import memory

LIMIT_S = 30


def test_the_memory_of_a_gpu_is_the_drivers_word(monkeypatch):
    """CUDA's free and total bytes are asked of the device that computes; one that is lost has none to show."""
    import torch

    asked = []

    def mem_get_info(device: Any) -> tuple[int, int]:
        asked.append(str(device))
        return 30, 100

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    assert {"used": 70, "total": 100} == memory.of_device("cuda:1").as_dict()
    assert ["cuda:1"] == asked

    def lost(device: Any) -> tuple[int, int]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    assert memory.of_device("cuda:0") is None


def test_a_driver_that_does_not_answer_holds_nobody_up(monkeypatch):
    """Reading the memory is given up after a moment, and the event loop never stands still."""
    gate = threading.Event()
    monkeypatch.setattr(memory, "PATIENCE_S", 0.05)
    monkeypatch.setattr(memory, "of_device", lambda name: gate.wait(LIMIT_S) and None)

    async def story() -> list[Any]:
        gauge = memory.Gauge()
        both = asyncio.gather(gauge.read("cuda:0"), gauge.read("cuda:0"))
        try:
            return await asyncio.wait_for(both, LIMIT_S)
        finally:
            gate.set()

    assert [None, None] == asyncio.run(story())
