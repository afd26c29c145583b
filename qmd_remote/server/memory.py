"""How much memory this process and its device use."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import psutil
from anyio import CapacityLimiter, move_on_after, to_thread

PATIENCE_S = 1.0  # a driver in trouble may never answer


@dataclass(frozen=True)
class Memory:
    """Bytes in use, and bytes there are."""

    used: int
    total: int

    def as_dict(self) -> dict[str, int]:
        """The two numbers by name."""
        return asdict(self)


def resident() -> int:
    """Bytes of this process in RAM."""
    return int(psutil.Process().memory_info().rss)


def of_device(name: str) -> Memory | None:
    """The memory of a device, by torch's name for it; None when it does not answer.

    CUDA: the whole device, other programs included. Everything else shares the machine's RAM with its process: what
    this process has of that.
    """
    if not name.startswith("cuda"):
        return Memory(resident(), int(psutil.virtual_memory().total))
    import torch

    try:
        free, total = torch.cuda.mem_get_info(torch.device(name))
    except RuntimeError:  # a device that is lost answers nothing any more
        return None
    return Memory(int(total - free), int(total))


class Gauge:
    """Reads the memory of a device for the event loop, which is never held up; one reading at a time."""

    def __init__(self) -> None:
        self._one_at_a_time = CapacityLimiter(1)

    async def read(self, name: str) -> Memory | None:
        """As `of_device`; None too when the device takes longer than PATIENCE_S."""
        with move_on_after(PATIENCE_S):
            return await to_thread.run_sync(of_device, name, limiter=self._one_at_a_time, abandon_on_cancel=True)
        return None
