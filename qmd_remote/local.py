"""The services of this machine, as its own client finds them: from their records, else from the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from qmd_remote import services, settings
from qmd_remote.client.qmd_config import normalise_url
from qmd_remote.errors import ConfigError, UsageError
from qmd_remote.services import EMBED, GENERATION, Record
from qmd_remote.settings import Settings


@dataclass(frozen=True)
class Local:
    """`generation_url` is None where generation is off. The key is the running server's, else this environment's."""

    embed_url: str
    generation_url: str | None
    embed: Record | None
    generation: Record | None
    key: str = field(repr=False)

    @property
    def running(self) -> bool:
        """Whether any of our services runs here."""
        return self.embed is not None or self.generation is not None


def find() -> Local:
    """Look at the records and at this environment's settings. Raises ConfigError for settings that are wrong."""
    ours = settings.resolve({})
    embed, generation = services.find(EMBED), services.find(GENERATION)
    return Local(
        embed_url=embed.url if embed else ours.url,
        generation_url=generation.url if generation else _beside(embed, ours),
        embed=embed,
        generation=generation,
        key=(embed.key() if embed else "") or ours.key,
    )


def _beside(embed: Record | None, ours: Settings) -> str | None:
    """Where generation is when we do not run it: as the running embed server was told, else as the settings say."""
    told = embed.beside if embed else {}
    engine, url = told.get("engine", ours.generation_engine), told.get("url", ours.generation_url)
    if engine == "external" and url:
        try:
            return normalise_url(url)
        except UsageError as error:
            raise ConfigError(f"QMD_REMOTE_GENERATION_URL: {error.message}", hint=error.hint) from None
    return None if engine == "off" else f"http://127.0.0.1:{ours.generation_port}"
