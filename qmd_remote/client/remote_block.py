"""What `config write` puts into the `remote:` block, as a value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from qmd_remote.errors import UsageError

Tree = dict[str, "str | Tree | None"]
"""Keys of a block with what they shall hold: a text, None (the key goes) or a block of their own."""

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Keep(Enum):
    """The one value that says "leave what is there"."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


@dataclass(frozen=True)
class ModelNames:
    """The names a client sends to each endpoint; None stands for "not known" and leaves the file as it is."""

    embed: str | None = None
    generate: str | None = None
    rerank: str | None = None


@dataclass(frozen=True, kw_only=True)
class RemoteBlock:
    """The `remote:` block that is wanted: one `url` for all, or both `embed_url` and `generation_url`.

    `api_key` is written as given ("${NAME}" refers to a variable of QMD's environment); None removes the key and
    KEEP leaves it. Raises UsageError for another choice of URLs, and for values a line of YAML cannot hold.
    """

    url: str | None = None
    embed_url: str | None = None
    generation_url: str | None = None
    api_key: str | Keep | None = KEEP
    models: ModelNames = ModelNames()

    def __post_init__(self) -> None:
        if self.url is None and (self.embed_url is None or self.generation_url is None):
            raise UsageError(
                "QMD needs one URL for all, or two: with only one of embed_url and generation_url it uses local models",
                hint="give --url, or both --embed-url and --generation-url",
            )
        if self.url is not None and (self.embed_url is not None or self.generation_url is not None):
            raise UsageError("--url stands for both services", hint="leave out --embed-url and --generation-url")
        for key, value in self._texts():
            if not value or not value.isprintable():
                what = "is empty" if not value else "holds a character that cannot be printed"
                raise UsageError(f"the value for {key} {what}", hint="name one, or leave that option out")

    @property
    def has_literal_key(self) -> bool:
        """Whether the key itself goes into the file, not a reference to a variable."""
        return isinstance(self.api_key, str) and is_literal(self.api_key)

    def tree(self) -> Tree:
        """The keys of the block in the order in which they are written."""
        tree: Tree = {"url": self.url, "embed_url": self.embed_url, "generation_url": self.generation_url}
        if not isinstance(self.api_key, Keep):
            tree["api_key"] = self.api_key
        models: Tree = {key: value for key, value in vars(self.models).items() if value is not None}
        if models:
            tree["models"] = models
        return tree

    def _texts(self) -> list[tuple[str, str]]:
        named = {**vars(self), **{f"models.{key}": value for key, value in vars(self.models).items()}}
        return [(key, value) for key, value in named.items() if isinstance(value, str)]


def references(text: str) -> list[str]:
    """The names of the variables that `text` refers to as `${NAME}`."""
    return _REFERENCE.findall(text)


def require_variable(name: str) -> None:
    """Refuse what QMD cannot look up as `${name}`. Raises UsageError, which does not repeat it: it may be a key."""
    if references(f"${{{name}}}") != [name]:
        raise UsageError(
            "--api-key-env takes the name of a variable: letters, digits and _",
            hint="give the name, such as QMD_REMOTE_API_KEY, and the key to that variable",
        )


def expand(text: str, values: dict[str, str]) -> str:
    """`text` with each `${NAME}` replaced from `values`, by nothing where it has none."""
    return _REFERENCE.sub(lambda match: values.get(match[1], ""), text)


def is_literal(api_key: str) -> bool:
    """Whether an `api_key` holds anything but references to variables."""
    return bool(_REFERENCE.sub("", api_key).strip())
