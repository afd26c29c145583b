"""The `up` line that would give again what runs here, or ran until it was killed: for hints."""

from __future__ import annotations

from qmd_remote import options, services, settings
from qmd_remote.errors import QmdRemoteError
from qmd_remote.services import SERVICES, Record
from qmd_remote.settings import Settings

BARE = "qmd-remote up"
# the settings that are options of `up`, and say what runs, rather than how
NAMED = (
    *("embed_model", "rerank_model", "device", "host", "port", "embed_engine", "embed_image", "gpus"),
    *(f"generation_{name}" for name in ("engine", "model", "command", "url", "port", "image", "container", "host")),
    *(f"generation_{name}" for name in ("context", "sequences", "gpu_share", "args")),
)


def up_line() -> str:
    """The line, with the options by which the recorded services differ from their preset; without records a bare one.

    A key is never part of it.
    """
    records = [record for name in SERVICES if (record := services.read(name)) is not None]
    if not records:
        return BARE
    preset = next((record.preset for record in records if record.preset), None)
    try:
        usual = settings.resolve({"preset": preset})
    except QmdRemoteError:  # in the user's file, and the next `up` tells it
        return BARE
    recorded = {name: value for record in records for name, value in _recorded(record).items()}
    given = {name: value for name, value in recorded.items() if name in NAMED and value != getattr(usual, name)}
    words = options.typed({"preset": preset, **given})
    return f"{BARE} {words}" if words else BARE


def settings_that_run() -> Settings | None:
    """The settings of what runs here, as its records tell them; None where nothing runs, or they do not tell enough."""
    from qmd_remote import up_flow

    records = [record for name in SERVICES if (record := services.find(name)) is not None]
    try:
        return up_flow.settings_of(records) if records else None
    except QmdRemoteError:  # a key that is not in this shell, say
        return None


def _recorded(record: Record) -> dict[str, object]:
    """What a record tells as settings; the embed server's tells where generation is, too."""
    known = {"generation_engine": record.beside.get("engine"), "generation_url": record.beside.get("url")}
    return {**{name: value for name, value in known.items() if value}, **record.spec}
