"""Which `remote:` block to write: URLs, model names and key from the options, the running services, or the design."""

from __future__ import annotations

import os
from dataclasses import replace

from qmd_remote import presets, services, settings
from qmd_remote.client import checks, qmd_config
from qmd_remote.client.remote_block import KEEP, Keep, ModelNames, RemoteBlock
from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.output import Output
from qmd_remote.services import EMBED, GENERATION

KEY_VARIABLE = "QMD_REMOTE_API_KEY"
DESIGN = ModelNames(presets.DESIGN_EMBED, presets.DESIGN_GENERATION, presets.DESIGN_RERANK)


def wanted_block(
    out: Output,
    *,
    url: str | None,
    embed_url: str | None,
    generation_url: str | None,
    key_variable: str | None,
    literal: bool,
) -> RemoteBlock:
    """Settle the block; what could not be learnt from a server is said as a warning.

    Raises UsageError for contradicting options, ConfigError for a key that is asked for and not there.
    """
    if url and (embed_url or generation_url):
        raise UsageError("--url stands for both services", hint="leave out --embed-url and --generation-url")
    one = qmd_config.normalise_url(url) if url else None
    local_embed, local_generation = local_urls()
    embed = one or (qmd_config.normalise_url(embed_url) if embed_url else local_embed)
    generation = one or (qmd_config.normalise_url(generation_url) if generation_url else local_generation)
    if (embed_url is None) != (generation_url is None):
        missing, default = ("--generation-url", generation) if embed_url else ("--embed-url", embed)
        out.warn(f"QMD needs both URLs, so {default} is written for the other one", hint=f"name it with {missing}")
    key = os.environ.get(key_variable or KEY_VARIABLE, "")
    server = checks.fetch_models(embed, generation, key)
    found = server.models
    if found.embed is None and not server.needs_key:
        out.warn(f"{embed} did not answer within 2 s: the design's model names are written", hint="qmd-remote up")
    if found.generate is None:
        hint = "QMD's query expansion fails until it does: qmd-remote status"
        out.warn(f"{generation} did not say which model it generates with", hint=hint)
    names = ModelNames(found.embed or DESIGN.embed, found.generate or DESIGN.generate, found.rerank or DESIGN.rerank)
    block = RemoteBlock(embed_url=embed, generation_url=generation, models=names)
    if one:
        block = RemoteBlock(url=one, models=names)
    return replace(block, api_key=_key(key_variable, literal=literal, needs_key=server.needs_key))


def _key(variable: str | None, *, literal: bool, needs_key: bool | None) -> str | Keep | None:
    """What to write as `api_key`: a reference, the key itself only if asked for, nothing, or what is there already."""
    if literal:
        key = os.environ.get(variable or KEY_VARIABLE, "")
        if not key:
            raise ConfigError(
                f"--api-key-literal copies the key from {variable or KEY_VARIABLE}, which is not set here",
                hint=f"export {variable or KEY_VARIABLE}=…",
            )
        return key
    if variable or needs_key:
        return f"${{{variable or KEY_VARIABLE}}}"
    # a server that does not answer does not say whether it wants the key that is there
    return KEEP if needs_key is None else None


def local_urls() -> tuple[str, str]:
    """(embed, generation) of the services that run here, else of this machine's settings."""
    local = settings.resolve({})
    embed, generation = services.find(EMBED), services.find(GENERATION)
    here = f"http://{services.connect_host(local.host)}:{local.port}"
    external = local.generation_url.rstrip("/") if local.generation_engine == "external" else ""
    beside = external or f"http://127.0.0.1:{local.generation_port}"
    return (embed.url if embed else here), (generation.url if generation else beside)
