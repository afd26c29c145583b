"""The families of QMD's remote clients, as data: where each is told its server, and under which names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qmd_remote.errors import UsageError
from qmd_remote.setting_values import did_you_mean

Role = Literal["embed", "rerank", "expand"]
FileKind = Literal["yaml", "json"]
Path = tuple[str, ...]
Entry = tuple[str, str]

EVERYTHING: tuple[Role, ...] = ("embed", "rerank", "expand")
DEFAULT = "chronologos"
LOCAL_NAME = r"(?i)(hf|huggingface):.*|huggingface\.co/.*|[^#]*\.gguf([.?].*)?"

_NO_KEY = re.compile(r"(?!sk-|hf_)[#\w-]{1,16}")  # what may be repeated: a key may stand in the wrong place


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of clients.

    `file_keys` and `variables` map a place (keys joined by dots, a variable's name) to a template: `{embed_url}` and
    `{generation_url}` stand for base URLs with `base_path` behind them, `{embed}`, `{rerank}` and `{generate}` for
    names of models, `{key}` for the API key; other text is written as it is. `roles` are what a server of ours can do
    for it; `limits` says what it cannot, and with `served` False that is everything.
    """

    name: str
    aliases: tuple[str, ...] = ()
    about: str
    base_path: Literal["", "/v1"] = ""
    any_base_path: bool = False
    file: FileKind | None = None
    file_keys: tuple[Entry, ...] = ()
    variables: tuple[Entry, ...] = ()
    roles: tuple[Role, ...] = EVERYTHING
    served: bool = True
    limits: str = ""
    note: str = ""

    @property
    def paths(self) -> tuple[tuple[Path, str], ...]:
        """The keys of the file, taken apart, with their templates."""
        return tuple((tuple(place.split(".")), template) for place, template in self.file_keys)

    @property
    def one_url(self) -> bool:
        """Whether there is no place for a URL of generation's own, so that one server has to answer for everything."""
        places = [template for _, template in self.file_keys or self.variables if "_url}" in template]
        return len(places) == 1 or ("expand" in self.roles and not any("{generation_url}" in one for one in places))

    @property
    def pull_requests(self) -> tuple[str, ...]:
        """The aliases that are numbers of QMD's pull requests."""
        return tuple(alias for alias in self.aliases if alias.startswith("pr"))


def _each(names: tuple[str, ...], pattern: str, templates: tuple[str, ...]) -> tuple[Entry, ...]:
    return tuple((pattern.replace("*", name), template) for name, template in zip(names, templates, strict=True))


_URLS = ("{embed_url}", "{embed_url}", "{generation_url}")
_MODELS = ("{embed}", "{rerank}", "{generate}")
_KEYS = ("{key}", "{key}", "{key}")
_API = ("embed", "rerank", "expand")
_API_VARIABLES = ("EMBED", "RERANK", "EXPAND")
_FORMATS = ("EMBED", "RERANK", "EXPAND", "GENERATE")

FAMILIES = (
    Family(
        name=DEFAULT,
        aliases=("remote",),
        about="the `remote:` block of index.yml",
        file="yaml",
        file_keys=(("remote.url", "{embed_url}"), ("remote.api_key", "{key}")),
    ),
    Family(
        name="api-urls",
        aliases=("pr517", "pr629", "pr705", "pr771"),
        about="a URL, a model and a key for each task",
        base_path="/v1",
        file="yaml",
        file_keys=(
            *_each(_API, "models.*_api_url", _URLS),
            *_each(_API, "models.*_api_model", _MODELS),
            *_each(_API, "models.*_api_key", _KEYS),
        ),
        variables=(
            *_each(_API_VARIABLES, "QMD_*_API_URL", _URLS),
            *_each(_API_VARIABLES, "QMD_*_API_MODEL", _MODELS),
            *_each(_API_VARIABLES, "QMD_*_API_KEY", _KEYS),
        ),
    ),
    Family(
        name="remote-urls",
        aliases=("pr575", "pr446"),
        about="a URL and a model for each task, and one key",
        variables=(
            *_each(("EMBED", "RERANK", "GEN"), "QMD_REMOTE_*_URL", _URLS),
            *_each(("EMBED", "RERANK", "GEN"), "QMD_REMOTE_*_MODEL", _MODELS),
            ("QMD_REMOTE_API_KEY", "{key}"),
        ),
    ),
    Family(
        name="llm-provider",
        aliases=("pr619",),
        about="the `llm:` block of index.yml, with one URL",
        base_path="/v1",
        any_base_path=True,
        file="yaml",
        file_keys=(
            ("llm.provider", "openai-compatible"),
            ("llm.baseUrl", "{embed_url}"),
            ("llm.apiKey", "{key}"),
            ("models.embed", "{embed}"),
            ("models.generate", "{generate}"),
            ("models.rerank", "{rerank}"),
        ),
    ),
    Family(
        name="remote-mode",
        aliases=("pr289", "pr306"),
        about="a switch, and a URL for each task",
        variables=(("QMD_REMOTE_MODE", "1"), *_each(("EMBED", "RERANK", "GENERATE"), "QMD_REMOTE_*_URL", _URLS)),
    ),
    Family(
        name="olyashok",
        aliases=("cellect-ai", "pr325"),
        about="a JSON file",
        file="json",
        file_keys=(
            ("remote.embedUrl", "{embed_url}"),
            ("remote.rerankUrl", "{embed_url}"),
            ("remote.generateUrl", "{generation_url}"),
            ("remote.generateModel", "{generate}"),
        ),
    ),
    Family(
        name="own-protocol",
        aliases=("pr511", "pr663", "pr927"),
        about="a protocol of its own: /embed, /embed-batch, /expand, /tokenize",
        variables=(("QMD_REMOTE_URL", "{embed_url}"),),
        roles=(),
        served=False,
        limits="it speaks a protocol of its own (/embed, /expand, /tokenize), which our server does not",
    ),
    Family(
        name="api-formats",
        aliases=("pr720",),
        about="a URL, a model, a key and a format for each task",
        base_path="/v1",
        any_base_path=True,
        variables=(
            *_each(_FORMATS, "QMD_*_BASE_URL", (*_URLS, "{generation_url}")),
            *_each(_FORMATS, "QMD_*_MODEL", (*_MODELS, "{generate}")),
            *_each(_FORMATS, "QMD_*_API_KEY", (*_KEYS, "{key}")),
            *_each(_FORMATS, "QMD_*_API_FORMAT", ("openai",) * 4),
        ),
    ),
    Family(
        name="model-urls",
        aliases=("pr761",),
        about="a URL in the place of the embedding model's name",
        base_path="/v1",
        file="yaml",
        file_keys=(("models.embed", "{embed_url}#{embed}"),),
        roles=("embed",),
        limits="it sends embeddings only: reranking and query expansion stay local",
    ),
    Family(
        name="ollama",
        aliases=("pr769",),
        about="Ollama's API, and a URL for each task",
        # all of them the embed server's: no engine for generation speaks Ollama's API
        variables=_each(("OLLAMA_EMBED", "RERANK", "EXPAND"), "QMD_*_URL", ("{embed_url}",) * 3),
    ),
    Family(
        name="wei840222",
        aliases=("pr902",),
        about="a provider with an endpoint for each model",
        base_path="/v1",
        file="yaml",
        file_keys=tuple(
            (f"models.{task}.{name}", template)
            for task in ("embed", "rerank")
            for name, template in (("provider", "openai"), ("endpoint", "{embed_url}"), ("model", f"{{{task}}}"))
        ),
        roles=("embed", "rerank"),
        limits="its query expansion stays as it is",
        note="it refuses answers under another model's name: run `qmd-remote settings set echo_model=true`, then "
        "`qmd-remote up`, where the server is",
    ),
    Family(
        name="zeattacker",
        about="a URL for embeddings and one for rankings",
        variables=(("QMD_EMBED_URL", "{embed_url}"), ("QMD_RERANK_URL", "{embed_url}")),
        roles=("embed", "rerank"),
        limits="its query expansion stays local",
    ),
)


def find(name: str) -> Family:
    """The family of this name or alias; numbers of pull requests go with `pr`, `#` or nothing before them.

    Raises UsageError, which names them all.
    """
    plain = name.strip().lower().removeprefix("#")
    wanted = f"pr{plain}" if plain.isdigit() else plain
    found = next((family for family in FAMILIES if wanted in (family.name, *family.aliases)), None)
    if found is None:
        # the number of another pull request is no guess
        words = [word for word, _ in names() if not word.startswith("pr")]
        accepted = ", ".join(" or ".join((family.name, *family.aliases)) for family in FAMILIES)
        called = f"is called '{name}'" if _NO_KEY.fullmatch(name) else "has the name that --client gives"
        message = f"no family of QMD's clients {called}{did_you_mean(plain, words)}"
        raise UsageError(message, hint=f"one of: {accepted}")
    return found


def names() -> Iterator[tuple[str, str]]:
    """Each name and alias with what it stands for, for completion."""
    for family in FAMILIES:
        yield family.name, family.about
        yield from ((alias, f"the same as {family.name}") for alias in family.aliases)
