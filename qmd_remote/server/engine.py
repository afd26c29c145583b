"""The engine: settings → two loaded models; texts → vectors and scores. It knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qmd_remote.errors import ApiError, ModelUnsupported, QmdRemoteError, ServiceFailed, Unavailable
from qmd_remote.server import hub, warm_up
from qmd_remote.server.batching import Lane, Limits
from qmd_remote.server.intake import INLINE_TEXTS, Intake, shutting_down
from qmd_remote.server.jobs import Job
from qmd_remote.server.loading import Models, load_models
from qmd_remote.server.model import Float32, Model
from qmd_remote.server.observer import SILENT, Observer, Role
from qmd_remote.server.prompts import Prompts
from qmd_remote.server.scheduler import Scheduler
from qmd_remote.server.text_model import TextModel
from qmd_remote.server.warm_up import Shape
from qmd_remote.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """`vectors`: float32 [n, dimension], finite rows of unit length, in input order. `tokens`: how many were run.

    `truncated`: how many texts were cut to the model's length.
    """

    vectors: NDArray[np.float32]
    tokens: int
    truncated: int = 0


@dataclass(frozen=True, eq=False)
class Scores:
    """`scores`: float64 [n] in [0, 1], in input order. `tokens` and `truncated` as in Embeddings."""

    scores: NDArray[np.float64]
    tokens: int
    truncated: int = 0


@dataclass(frozen=True)
class Loading:
    """What the loader is doing, in words, and the share of it that is done (0 to 1) where that is known."""

    phase: str
    progress: float | None = None


class Engine:
    """Two models behind one queue, watched by `observer`. Cheap to construct; `start` loads in a thread of its own.

    For one event loop.
    """

    def __init__(self, settings: Settings, *, observer: Observer = SILENT) -> None:
        self._settings = settings
        self._observer = observer
        self.embed_id = hub.shown_id(settings.embed_model)
        self.rerank_id = hub.shown_id(settings.rerank_model)
        self.loading = Loading("starting")
        self.failure: QmdRemoteError | None = None
        self._models: Models | None = None
        self._dimension: int | None = None
        self._closed = False
        self._settled = False
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._scheduler = Scheduler(on_lost=self._lost, observer=observer)
        self._intake = Intake(settings, self._scheduler, observer)

    @property
    def state(self) -> Literal["loading", "ready", "failed"]:
        """Where the engine stands; "failed" is for good."""
        if self.failure is not None:
            return "failed"
        return "loading" if self._dimension is None else "ready"

    @property
    def dimension(self) -> int | None:
        """Numbers in a vector; None until ready."""
        return self._dimension

    def start(self) -> None:
        """Start to load; returns at once."""
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when loading has ended either way, and once more if the device fails after that.

        It runs in the thread where that happens, or at once if loading has ended already.
        """
        with self._lock:
            self._callbacks.append(callback)
            settled = self._settled
        if settled:
            callback()

    async def ready(self, timeout: float) -> None:  # noqa: ASYNC109 - callers say how long, and get a typed error
        """Wait until the models are loaded.

        Raises Unavailable: code "loading" after `timeout` seconds, "failed" when they cannot be loaded,
        "shutting_down" after `close`.
        """
        if self.state == "loading" and not self._closed:
            await self._settle(timeout)
        if self._closed:
            raise shutting_down()
        if self.failure is not None:
            raise Unavailable(
                f"the models cannot be used ({self.failure.code}): the server's log says why", code="failed"
            )
        if self.state == "loading":
            now = self.loading
            share = "" if now.progress is None else f", {now.progress:.0%}"
            raise Unavailable(f"the models are still loading ({now.phase}{share})", code="loading", retry_after=5)

    async def embed(self, inputs: Sequence[str | Sequence[int]], prompt_name: str | None = None) -> Embeddings:
        """Embed texts, with the prompts that `Prompts` describes, or token arrays, as they are.

        `prompt_name` is for texts without a prefix; None stands for the default role. Raises BadRequest (a token id
        outside the vocabulary, an unknown prompt), Unavailable (loading, overloaded, stalled, out of memory), ApiError
        (the model fails on an input).
        """
        models = await self._ready_models()
        if not inputs:
            return Embeddings(np.zeros((0, self._dimension or 0), dtype=np.float32), 0)
        prompts = models.embedder.prompts
        prompt = prompts.choose(prompt_name or self._settings.default_role)
        prompted = partial(_prompted, prompts, inputs, prompt)
        inputs = prompted() if len(inputs) <= INLINE_TEXTS else await self._intake.in_cpu_thread(prompted)
        if not all(isinstance(item, str) for item in inputs):
            await self._intake.in_cpu_thread(partial(models.embedder.check, inputs))
        found = await self._intake.compute(models.embedder, inputs, "embed")
        return Embeddings(found.values, found.tokens, found.truncated)

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
        """Score each document against the query. Raises like `embed`."""
        reranker = (await self._ready_models()).reranker
        if not documents:
            return Scores(np.zeros(0), 0)
        # each text is scored once: the last digit of a score depends on a text's place in its batch, and equal texts
        # must be a tie
        place: dict[str, int] = {}
        order = [place.setdefault(text, len(place)) for text in documents]
        found = await self._intake.compute(reranker.model, reranker.inputs(query, list(place)), "rerank")
        scores = await self._intake.in_cpu_thread(partial(reranker.scores, found.values))
        return Scores(scores[order], found.tokens, found.truncated)

    def facts(self) -> dict[str, object]:
        """What /health tells about the models; empty until ready."""
        models = self._models
        if models is None or self._dimension is None:
            return {}
        forwards = {"embed": models.embedder.forward, "rerank": models.reranker.model.forward}
        dtype, backend = forwards["embed"].dtype, forwards["embed"].name.partition(",")[0]
        lanes = {lane.value: self._scheduler.queued(lane) for lane in Lane}
        return {
            "device": models.device.name,
            "device_reason": models.device.reason,
            "cuda_available": models.device.cuda_available,
            "dtype": dtype,
            "dtype_reason": models.device.why_dtype(dtype),
            "backend": backend,
            "backend_reason": models.device.why_backend(backend),
            "forward": {role: forward.name for role, forward in forwards.items()},
            "dimension": self._dimension,
            "max_length": models.embedder.max_length,
            "prompts": models.embedder.prompts.facts(self._settings.default_role),
            "max_batch_size": self._settings.max_batch_size,
            "max_batch_tokens": models.device.batch_tokens,
            "threads": models.threads.count,
            "threads_reason": models.threads.reason,
            "learned_batch_tokens": self._scheduler.learned_tokens,
            "queued": sum(lanes.values()),
            "queued_by_lane": lanes,
            "reranker": models.reranker.kind,
            "sources": {"embed": models.embed_source.origin, "rerank": models.rerank_source.origin},
        }

    @property
    def working(self) -> bool:
        """Whether the model still computes, after `close` too: a pass that was begun cannot be stopped."""
        return self._scheduler.working

    def close(self) -> None:
        """Stop all threads; everything that waits ends with Unavailable."""
        self._closed = True
        self._scheduler.close()
        self._intake.close()
        if not self._settled:  # wake those who wait for the models
            self._call_back()

    async def _settle(self, timeout: float) -> None:  # noqa: ASYNC109 - as above
        loop = asyncio.get_running_loop()
        settled = asyncio.Event()
        wake = partial(_tell, loop, settled)
        self.on_settled(wake)
        try:
            async with asyncio.timeout(timeout):
                await settled.wait()
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._callbacks.remove(wake)

    async def _ready_models(self) -> Models:
        await self.ready(self._settings.ready_wait_s)
        assert self._models is not None
        return self._models

    def _load(self) -> None:
        try:
            self._models = models = load_models(self._settings, self._report)
            for role, seconds in models.load_seconds.items():
                self._observer.loaded(role, seconds)
            self._report("warming up", None)
            self._scheduler.start(Limits(self._settings.max_batch_size, models.device.batch_tokens))
            self._warm_up(models)
        except _Closed:
            return
        except QmdRemoteError as error:
            self.failure = error
        except (Exception, SystemExit) as error:  # a thread swallows the latter, and all would wait for ever
            log.exception("loading failed")
            self.failure = ServiceFailed(
                f"loading the models failed: {type(error).__name__}: {error}",
                hint="its log tells where: qmd-remote logs embed",
            )
        if self.failure is not None:
            log.error("%s; %s", self.failure.message, self.failure.hint)
        self._call_back()

    def _warm_up(self, models: Models) -> None:
        """One short text through each model, which shows whether it works at all; then the sizes of `warm_up`."""
        began = time.monotonic()
        reranker, embedder = models.reranker, models.embedder
        self._try(reranker.model, reranker.inputs("a", ["b"]), models.rerank_source.id)
        dimension = self._try(embedder, ["a"], models.embed_source.id).shape[1]
        inputs: list[tuple[TextModel[Any], Callable[[str], Any], Role]] = [(embedder, str, "embed")]
        if reranker.model is not embedder:
            inputs.append((reranker.model, lambda text: reranker.inputs("a", [text])[-1], "rerank"))
        limits = self._settings.max_batch_size, models.device.batch_tokens
        plans = [warm_up.shapes(model.max_length, *limits) for model, _, _ in inputs]
        seconds, planned, ran = warm_up.limit_s(models.device.name) / len(plans), sum(map(len, plans)), 0
        for (model, input_for, role), plan in zip(inputs, plans, strict=True):
            for shape in warm_up.within(plan, seconds):
                self._report("warming up", ran / planned)
                self._run_once(model, input_for(shape.text), shape, role)
                ran += 1
        log.info("warmed up with %d of %d sizes of batch in %.1f s", ran, planned, time.monotonic() - began)
        self._dimension = dimension

    def _run_once(self, model: TextModel[Any], item: Any, shape: Shape, role: Role) -> None:
        items = model.prepare([item]) * shape.rows
        try:
            self._scheduler.submit(model, items, Lane.of(shape.rows), Job(role)).result()
        except ApiError as error:
            if self._closed:
                raise _Closed from None
            # too large for the memory, say: who asks for it will be told, and all else is served
            log.warning("a batch of %d tokens cannot be computed here: %s", shape.tokens, error.message)

    def _try(self, model: Model[Any], inputs: Sequence[Any], name: str) -> Float32:
        try:
            return self._scheduler.submit(model, model.prepare(inputs), Lane.QUERY).result()
        except ApiError as error:
            if self._closed:
                raise _Closed from None
            raise ModelUnsupported(
                f"{name} does not work: {error.message}", hint="the server's log says why"
            ) from error

    def _report(self, phase: str, progress: float | None) -> None:
        if self._closed:
            raise _Closed
        if phase != self.loading.phase:
            log.info("loading: %s", phase)
        self.loading = Loading(phase, progress)

    def _lost(self, error: BaseException) -> None:
        self.failure = ServiceFailed(
            f"the model thread ended: {type(error).__name__}: {error}", hint="restart the server", code="device.lost"
        )
        self._call_back()

    def _call_back(self) -> None:
        with self._lock:
            self._settled = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()


class _Closed(Exception):
    """Loading goes on in a server that has been closed."""


def _prompted(prompts: Prompts, inputs: Sequence[str | Sequence[int]], otherwise: str) -> Sequence[str | Sequence[int]]:
    return [prompts.apply(item, otherwise) if isinstance(item, str) else item for item in inputs]


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        loop.call_soon_threadsafe(event.set)
