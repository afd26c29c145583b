"""From a folder to a model on its device, or the reason why not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qmd_remote import turn
from qmd_remote.errors import ExtraMissing, ModelUnsupported, PrerequisiteError, QmdRemoteError
from qmd_remote.server import cores, hub, threads
from qmd_remote.server import device as devices
from qmd_remote.server.backends import forward_for
from qmd_remote.server.checkpoint import Kind, kind
from qmd_remote.server.device import Device
from qmd_remote.server.embedder import Embedder
from qmd_remote.server.hub import Source
from qmd_remote.server.lean_imports import import_sentence_transformers
from qmd_remote.server.observer import Role
from qmd_remote.server.prompts import NOT_POOLED, OFF, Prompts, prompts_of
from qmd_remote.server.recovery import is_out_of_memory
from qmd_remote.server.reranker import BiEncoderReranker, CrossEncoderModel, CrossEncoderReranker, Reranker
from qmd_remote.settings import Settings

log = logging.getLogger(__name__)

Report = Callable[[str, float | None], None]


@dataclass(frozen=True, eq=False)
class Models:
    """Both models on their device, and where they came from."""

    device: Device
    embed_source: Source
    rerank_source: Source
    embedder: Embedder
    reranker: Reranker
    threads: threads.Choice
    load_seconds: Mapping[Role, float]  # downloads left out; next to 0 for a model that does both jobs


def load_models(settings: Settings, report: Report) -> Models:
    """Find, fetch and load both models. `report` gets each phase by name, and its share done where that is known.

    What is quick to fail comes first: the device, then the names, then the downloads, then the weights.
    Raises ConfigError and PrerequisiteError with all their kinds.
    """
    report("importing libraries", None)
    device, crew = _place(settings)
    embed = _find(settings.embed_model, report)
    same = settings.rerank_model == settings.embed_model
    rerank = embed if same else _find(settings.rerank_model, report)
    report("importing sentence-transformers", None)
    _import()
    turn.wait_for_generation(settings, report)
    report("loading the embedding model", None)
    began = time.monotonic()
    trusted = _is_trusted(settings, settings.embed_model)
    embedder = load_embedder(embed, device, trusted=trusted, prompted=settings.prompts)
    seconds: dict[Role, float] = {"embed": time.monotonic() - began}
    report("loading the reranking model", None)
    trusted = _is_trusted(settings, settings.rerank_model)
    began = time.monotonic()
    reranker = load_reranker(rerank, device, trusted=trusted, shared=(embed, embedder))
    seconds["rerank"] = time.monotonic() - began
    return Models(device, embed, rerank, embedder, reranker, crew, seconds)


def _place(settings: Settings) -> tuple[Device, threads.Choice]:
    """What to compute on, and with how many threads of the CPU; those are set."""
    device = devices.choose(
        settings.device, devices.look(), settings.dtype, settings.backend, settings.max_batch_tokens
    )
    crew = threads.choose(settings.threads, cores.look())
    threads.apply(crew.count)
    return replace(device, threads=crew.count), crew


def _find(name: str, report: Report) -> Source:
    return hub.find(name, progress=lambda share: report(f"downloading {hub.shown_id(name)}", share))


def _is_trusted(settings: Settings, name: str) -> bool:
    """Whether a model may run code of its own: its name, as set or as shown, is in the list."""
    return not {name, hub.shown_id(name)}.isdisjoint(settings.trust_remote_code)


def _import() -> None:
    """sentence-transformers, and no progress bars of its libraries in the server's log: /health tells the progress."""
    hub.silence()
    try:
        import_sentence_transformers()
        from transformers.utils import logging as transformers_logging
    except ModuleNotFoundError as error:
        raise ExtraMissing("server", error.name or "sentence_transformers") from None
    transformers_logging.disable_progress_bar()


def load_embedder(source: Source, device: Device, *, trusted: bool, prompted: bool = True) -> Embedder:
    """Load the embedding model. `trusted` lets it run code of its own; `prompted` gives texts its prompts.

    Raises ModelUnsupported, PrerequisiteError (memory), ExtraMissing.
    """
    if kind(source.folder) is not Kind.BI_ENCODER:
        raise ModelUnsupported(
            f"{source.id} is no embedding model", hint="set EMBED_MODEL to one; a cross-encoder belongs in RERANK_MODEL"
        )
    with _explained(source, "an embedding model", device):
        from sentence_transformers import SentenceTransformer

        network = SentenceTransformer(str(source.folder), **_options(device, trusted))
        prompts = _prompts(network, source.id) if prompted else OFF
        return Embedder(_ready(network), partial(forward_for, device=device, folder=source.folder), prompts)


def load_reranker(source: Source, device: Device, *, trusted: bool, shared: tuple[Source, Embedder]) -> Reranker:
    """Load the reranker: a cross-encoder, or a bi-encoder, which is `shared` if that is the same model.

    Raises ModelUnsupported, PrerequisiteError (memory), ExtraMissing.
    """
    what = kind(source.folder)
    if what is Kind.OTHER:
        raise ModelUnsupported(
            f"{source.id} is no reranker", hint="set RERANK_MODEL to a cross-encoder or to an embedding model"
        )
    if what is Kind.BI_ENCODER:
        embedder = shared[1]
        if source.folder != shared[0].folder:
            embedder = load_embedder(source, device, trusted=trusted, prompted=embedder.prompts is not OFF)
        return BiEncoderReranker(embedder)
    with _explained(source, "a reranker", device):
        from sentence_transformers import CrossEncoder
        from torch.nn import Identity

        network = CrossEncoder(str(source.folder), activation_fn=Identity(), **_options(device, trusted))
        return CrossEncoderReranker(
            CrossEncoderModel(_ready(network), partial(forward_for, device=device, folder=source.folder))
        )


def _prompts(network: Any, name: str) -> Prompts:
    # what pooling leaves out is counted once for a whole batch, and here each text may have another prompt
    if any(getattr(module, "include_prompt", True) is False for module in network.modules()):
        return NOT_POOLED
    return prompts_of(network.prompts, name, str(getattr(network.config, "model_type", "")))


def _options(device: Device, trusted: bool) -> dict[str, Any]:
    import torch

    return {
        "device": device.name,
        "trust_remote_code": trusted,
        # the folder is complete; only code that a trusted model keeps in another repository may still be fetched
        "local_files_only": not trusted,
        "model_kwargs": {"dtype": getattr(torch, device.weights_dtype)},
    }


def _ready(network: Any) -> Any:
    """Inference mode, and a padding token: models without one cannot be batched."""
    network.eval()
    tokenizer, config = network.tokenizer, network.config
    if tokenizer is not None and getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config is not None and getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = tokenizer.pad_token_id
    return network


@contextmanager
def _explained(source: Source, purpose: str, device: Device) -> Iterator[None]:
    try:
        yield
    except QmdRemoteError:
        raise
    except ModuleNotFoundError as error:
        if error.name in ("sentence_transformers", "torch", "transformers"):
            raise ExtraMissing("server", error.name) from None
        raise ModelUnsupported(
            f"{source.id} needs the Python package '{error.name}'", hint=f"pip install {error.name}"
        ) from error
    except Exception as error:  # a folder can be wrong in as many ways as there are libraries that read it
        log.debug("loading %s failed", source.id, exc_info=error)
        raise _explain(error, source, purpose, device) from error


def _explain(error: Exception, source: Source, purpose: str, device: Device) -> QmdRemoteError:
    if is_out_of_memory(error):
        return PrerequisiteError(
            f"{device.name} has not enough free memory for {source.id}",
            hint="take a smaller model, stop what else uses the device, or set DEVICE=cpu",
            code="memory.short",
        )
    if "trust_remote_code" in str(error):
        return ModelUnsupported(
            f"{source.id} runs code of its own, which is not allowed unless asked for",
            hint=f"read that code first, then add --trust-remote-code {source.id}",
        )
    reason = str(error).strip().partition("\n")[0].replace(str(source.folder), source.id)
    return ModelUnsupported(
        f"{source.id} cannot be loaded as {purpose}: {type(error).__name__}: {reason}",
        hint="recommended models: qmd-remote models",
    )
