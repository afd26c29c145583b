"""What happens when a batch fails: free, halve, retry, and each item that is alone once more; never a lost item."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from qmd_remote.errors import ApiError, Unavailable
from qmd_remote.server.model import Float32, Model, Prepared
from qmd_remote.server.observer import SILENT, Observer

log = logging.getLogger(__name__)

# as torch says it for CUDA, MPS and the CPU, cuBLAS, and OpenVINO
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to allocate",
    "bad_alloc",
)

Outcome = Float32 | ApiError
Attempt = Float32 | Exception  # what a forward pass came to


class DeviceLost(Exception):
    """The device refuses all further work of this process; only a new process helps."""


def failure(error: Exception) -> Exception:
    """`error`, which ended a forward pass, ready to be kept: it holds no memory that a retry needs.

    Raises DeviceLost where there is nothing to retry on.
    """
    if is_device_lost(error):
        raise DeviceLost(str(error)) from error
    if is_out_of_memory(error):
        # the failed frames hold the very tensors whose memory the retry needs
        traceback.clear_frames(error.__traceback__)
    return error


def finished(model: Model[Any], output: Any) -> Attempt:
    """What `model.run` gave as `output`, on the host. Raises DeviceLost."""
    try:
        return model.finish(output)
    except Exception as error:  # any failure of a forward pass belongs to its items, not to the model thread
        return failure(error)


def is_good(attempt: Attempt) -> TypeGuard[Float32]:
    """Whether an attempt gave rows, all of them finite."""
    return not isinstance(attempt, Exception) and bool(np.isfinite(attempt).all())


def outcomes(model: Model[Any], batch: Sequence[Prepared], observer: Observer = SILENT) -> list[Outcome]:
    """Run `batch`; one outcome per item, in order: its finite float32 [width] row, or the error for its request.

    Raises DeviceLost.
    """
    return rescue(model, batch, _attempt(model, batch), observer)


def _attempt(model: Model[Any], batch: Sequence[Prepared]) -> Attempt:
    try:
        output = model.run(batch)
    except Exception as error:  # as in `finished`
        return failure(error)
    return finished(model, output)


def rescue(model: Model[Any], batch: Sequence[Prepared], attempt: Attempt, observer: Observer) -> list[Outcome]:
    """As `outcomes`, after a first attempt that came to this.

    A batch that fails is split, so that an item which cannot be computed never fails its neighbours.
    """
    if len(batch) == 1 and isinstance(attempt, Exception):
        # it cannot be halved, but what was only cached, or held by the batch before it, may be all it lacked; and a
        # failure of another kind may pass
        if is_out_of_memory(attempt):
            observer.out_of_memory()
        else:
            log.warning("an input failed (%s): trying it once more", _first_line(attempt))
        model.free()
        attempt = _attempt(model, batch)
    if isinstance(attempt, Exception):
        return _after_failure(model, batch, attempt, observer)
    if is_good(attempt):
        return list(attempt)
    if _widened(model):
        log.warning("half precision gave a result that is not finite: continuing in float32")
        observer.widened()
        return outcomes(model, batch, observer)
    return [row if np.isfinite(row).all() else _not_finite() for row in attempt]


def _widened(model: Model[Any]) -> bool:
    try:
        return model.widen()
    except Exception as error:  # float32 takes twice the memory; the model is as it was
        log.error("float32 does not fit: %s", _first_line(failure(error)))
        model.free()
        return False


def _after_failure(model: Model[Any], batch: Sequence[Prepared], error: Exception, observer: Observer) -> list[Outcome]:
    memory = is_out_of_memory(error)
    if memory:
        observer.out_of_memory()
        model.free()
    if len(batch) > 1:
        log.warning("a batch of %d failed (%s): splitting it", len(batch), _first_line(error))
        # memory lasts for half as many; anything else is the fault of one item, and halving finds it
        middle = len(batch) // 2
        return outcomes(model, batch[:middle], observer) + outcomes(model, batch[middle:], observer)
    log.error("one input of %d tokens cannot be computed", batch[0].length, exc_info=error)
    if memory:
        return [
            Unavailable(
                f"the device has no memory for one input of {batch[0].length} tokens",
                code="out_of_memory",
            )
        ]
    # 503, like all that may pass: clients send the request again, to a model that by then may do
    return [Unavailable("the model failed twice on one of the inputs: the server's log tells why", code="model_failed")]


def _not_finite() -> ApiError:
    # 500: the same numbers come again, so that nobody is asked to wait
    return ApiError("the model gives no finite result for one of the inputs", code="not_finite")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: CUDA, MPS, the CPU's allocator or OpenVINO."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether `error` poisons the device for this process: after such a CUDA error every later call fails too."""
    return not is_out_of_memory(error) and type(error).__name__ == "AcceleratorError"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
