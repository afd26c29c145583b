"""Which `remote:` block to write: URLs, model names and key from the options, the running services, or the design."""

from __future__ import annotations

import os
from dataclasses import replace

from qmd_remote import local, presets
from qmd_remote.client import checks, qmd_config
from qmd_remote.client.remote_block import KEEP, Keep, ModelNames, RemoteBlock, require_variable
from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.output import Output

KEY_VARIABLE = "QMD_REMOTE_API_KEY"
NOWHERE = "http://127.0.0.1:8000"
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
    if key_variable:
        require_variable(key_variable)
    one = qmd_config.normalise_url(url) if url else None
    here = local.find()
    embed = one or (qmd_config.normalise_url(embed_url) if embed_url else here.embed_url)
    # QMD ignores a block with one URL only: where generation is off, a door at which nobody answers is written
    generation = one or (qmd_config.normalise_url(generation_url) if generation_url else here.generation_url or NOWHERE)
    if (embed_url is None) != (generation_url is None):
        missing, default = ("--generation-url", generation) if embed_url else ("--embed-url", embed)
        out.warn(f"QMD needs both URLs, so {default} is written for the other one", hint=f"name it with {missing}")
    key = os.environ.get(key_variable, "") if key_variable else here.key
    server = checks.fetch_models(embed, generation, key)
    found = server.models
    if found.embed is None and server.needs_key:
        hint = f"export {key_variable or KEY_VARIABLE}=… and write again"
        out.warn(f"{embed} tells its models to those with a key only: the design's names are written", hint=hint)
    elif found.embed is None:
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
