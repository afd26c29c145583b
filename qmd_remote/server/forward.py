"""Forward passes: rows of tokens → numbers. What every backend offers, what it is given, and the padded one.

A backend is a way to compute the same result: `PaddedForward` works for every architecture; the others are chosen in
`backends` where they are faster and the network allows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qmd_remote.server.model import Float32, Row, pad

if TYPE_CHECKING:
    from sentence_transformers.base.model import BaseModel
    from torch import Tensor

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Network:
    """A loaded sentence-transformers model as forward passes see it.

    `module` maps a dictionary of features to one that has the result under `output`, a tensor [n, width]. Rows bring
    the features `names`; `constants` are those that are the same for every batch. `pad_id` and `side` say how rows
    of unequal length are padded.
    """

    module: BaseModel
    output: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]
    pad_id: int
    side: Side


class Forward(Protocol):
    """One way to compute. Only the model thread calls `run`, `widen` and `free`."""

    @property
    def name(self) -> str:
        """How /health names it: "torch, padded", for example."""
        ...

    @property
    def dtype(self) -> str:
        """What matrix products are computed in: float32, bfloat16 or float16."""
        ...

    @property
    def packs(self) -> bool:
        """Whether rows of unequal length cost no padding."""
        ...

    @property
    def deferred(self) -> bool:
        """Whether `run` returns before the device has computed, so that `fetch` waits for it."""
        ...

    def run(self, rows: Sequence[Row]) -> Any:
        """One pass; the result stays where it was computed."""
        ...

    def fetch(self, output: Any) -> Float32:
        """What `run` returned, on the host: float32 [rows, width]."""
        ...

    def widen(self) -> bool:
        """Continue in float32 for good; False if that is the case already, or the backend has no other precision."""
        ...

    def free(self) -> None:
        """Give back device memory that is only cached."""
        ...


class PaddedForward:
    """Any network in torch: rows are padded to the longest, and computed in the precision of the weights."""

    name = "torch, padded"
    packs = False

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def dtype(self) -> str:
        """What matrix products are computed in."""
        from qmd_remote.server.linears import precision

        return precision(self._network.module)

    @property
    def deferred(self) -> bool:
        """True on a GPU."""
        return bool(self._network.module.device.type == "cuda")

    def run(self, rows: Sequence[Row]) -> Any:
        """One pass over the padded rows. On a GPU the result is on its way to the host when this returns."""
        import torch

        network = self._network
        arrays = pad(rows, pad_id=network.pad_id, side=network.side)
        features = {name: torch.from_numpy(values).to(network.module.device) for name, values in arrays.items()}
        with torch.inference_mode():
            found = network.module({**features, **network.constants})[network.output]
            return sent(found.float())

    def fetch(self, output: Any) -> Float32:
        """The result on the host, float32 [rows, width]."""
        return arrived(output)

    def widen(self) -> bool:
        """Make weights in float16 float32. False for all others: what overflows in bfloat16 does so in float32 too."""
        if self.dtype != "float16":
            return False
        module = self._network.module
        before = [(one, one.dtype) for one in module.parameters()]
        try:
            module.float()
        except Exception:  # no memory for it: half of the weights wide and half of them not would fail every pass
            for one, dtype in before:
                one.data = one.data.to(dtype)
            raise
        return True

    def free(self) -> None:
        """Empty torch's cache of device memory."""
        import torch

        device = self._network.module.device.type
        if device == "cuda":
            torch.cuda.empty_cache()
        elif device == "mps":
            torch.mps.empty_cache()


def sent(found: Tensor) -> tuple[Tensor, Any]:
    """`found` on the host, and the event of its arrival there; a copy behind the next pass would wait for that too."""
    import torch

    if found.device.type != "cuda":
        return found.cpu(), None
    host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
    host.copy_(found, non_blocking=True)
    return host, torch.cuda.current_stream(found.device).record_event()


def arrived(output: tuple[Tensor, Any]) -> Float32:
    """What was `sent`, when it is there."""
    found, event = output
    if event is not None:
        event.synchronize()
    rows: Float32 = found.numpy()
    return rows
