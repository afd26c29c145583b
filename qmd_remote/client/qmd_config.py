"""QMD's configuration file: read what QMD would see, plan a change of its `remote:` block or another, apply it."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from qmd_remote import atomic
from qmd_remote.client import backups
from qmd_remote.client.remote_block import ModelNames, RemoteBlock, expand, is_literal, references
from qmd_remote.client.yaml_cut import cut
from qmd_remote.client.yaml_document import Document, Node, parse
from qmd_remote.client.yaml_splice import BLOCK, splice
from qmd_remote.errors import ConfigError, UsageError

ATTEMPTS = 3
HIDDEN = "(hidden)"
HIDDEN_NEW = "(hidden, new)"

_SECRET = re.compile(r"(?i)api[-_]?key|secret|password|authorization|(^|_)token$")
_USER_INFO = re.compile(r"(?<=:)//[^/@\s\"']+@")
_SECRET_COMMENT = re.compile(
    r"(?i)(#.*(?:api[-_]?key|secret|password|authorization|token)[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic)\s+)?)(\S+)"
)


Edit = Callable[[str | None], str | None]
"""A file's old text → its new one; None stands for no file. Raises ConfigError for what cannot be edited safely."""

Mask = Callable[[str, frozenset[str] | None], tuple[str, frozenset[str]]]
"""A text, and the keys known from before → the text with its literal keys hidden, and those."""


@dataclass(frozen=True)
class RemoteConfig:
    """The `remote:` block as QMD's client reads it. `exists` speaks of the file, `present` of the block.

    `embed_url` and `generation_url` are the ones it would use, `url` standing in for either; `api_key` has its
    variables filled in, `unset` names those without a value; `problem` says why QMD would use local models instead,
    and is empty when it would not.
    """

    path: Path
    exists: bool = False
    present: bool = False
    url: str | None = None
    embed_url: str | None = None
    generation_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_shown: str | None = None
    unset: tuple[str, ...] = ()
    models: ModelNames = field(default_factory=ModelNames)
    problem: str = ""


@dataclass(frozen=True)
class Change:
    """What an edit would do.

    `diff` is a unified diff without literal keys; `backup` is where the old text goes; texts are None for no file.
    `private` says that a literal key goes in, `removal` that nothing is wanted.
    """

    path: Path
    before: str | None = field(repr=False)
    after: str | None = field(repr=False)
    diff: str
    edit: Edit = field(repr=False)
    mask: Mask = field(repr=False)
    private: bool = False
    removal: bool = False

    @property
    def created(self) -> bool:
        """Whether there is no file yet, and one is made."""
        return self.before is None and self.after is not None

    @property
    def changed(self) -> bool:
        """Whether the text differs from what is there."""
        return self.before != self.after

    @property
    def backup(self) -> Path | None:
        """The copy of the old file that a change leaves behind."""
        return backups.place(self.path, self.before) if self.changed and self.before is not None else None


def normalise_url(text: str) -> str:
    """The base URL in the form that QMD's client needs: no trailing slash, no `/v1`.

    Raises UsageError, saying what to change.
    """
    given = text.strip()
    example = "write it as http://HOST:PORT"
    if not given.isprintable() or any(character.isspace() for character in given):
        raise UsageError("a URL holds no spaces and no control characters", hint=example)
    if not re.match(r"https?://", given, re.IGNORECASE):
        hint = example if not given or "://" in given else f"write http://{given} or https://{given}"
        raise UsageError("a URL begins with http:// or https://", hint=hint)
    try:
        parts = urlsplit(given)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"the URL cannot be read: {error}", hint=example) from None
    if not host:
        raise UsageError("the URL names no host", hint=example)
    if "@" in parts.netloc:
        raise UsageError(
            "a URL must not carry a user name or a password",
            hint="give the key to the server with --api-key-file and to QMD with --api-key-env NAME",
        )
    if parts.query or parts.fragment or "?" in given or "#" in given:
        raise UsageError("a base URL has no ? and no # part", hint=f"write {parts.scheme}://{parts.netloc}{parts.path}")
    path = parts.path.rstrip("/")
    while path.endswith("/v1"):
        path = path.removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def read(path: Path, env: Mapping[str, str] = os.environ) -> RemoteConfig:
    """What QMD would make of the file with these environment variables.

    Raises ConfigError for a file that cannot be read, or that QMD could not parse (it would use local models then,
    without a word).
    """
    text = read_text(path)
    if text is None:
        return RemoteConfig(path, problem="there is no such file")
    document = parse(text, path.name)
    values = _block(document)
    if values is None:
        return RemoteConfig(path, exists=True, problem=f"the file has no `{BLOCK}:` block")
    url = _text(document, values, "url")
    embed_url = _text(document, values, "embed_url") or url
    generation_url = _text(document, values, "generation_url") or url
    raw_key = _text(document, values, "api_key")
    unset = tuple(dict.fromkeys(name for name in references(raw_key or "") if not env.get(name)))
    models = values.get("models")
    names = document.resolve(models[1]) if models else Node("mapping", 0, 0)
    return RemoteConfig(
        path,
        exists=True,
        present=True,
        url=url,
        embed_url=embed_url,
        generation_url=generation_url,
        api_key=expand(raw_key, dict(env)) or None if raw_key else None,
        api_key_shown=HIDDEN if raw_key and is_literal(raw_key) else raw_key,
        unset=unset,
        models=ModelNames(**{key: _text(document, names, key) for key in ("embed", "generate", "rerank")}),
        problem=_why_local(embed_url, generation_url),
    )


def _block(document: Document) -> Node | None:
    pair = document.root.get(BLOCK) if document.root else None
    node = document.resolve(pair[1]) if pair else None
    return node if node and node.kind == "mapping" else None


def _text(document: Document, values: Node, key: str) -> str | None:
    pair = values.get(key)
    node = document.resolve(pair[1]) if pair else None
    return node.value or None if node and node.kind == "scalar" and not node.is_null else None


def _why_local(embed_url: str | None, generation_url: str | None) -> str:
    if embed_url and generation_url:
        return ""
    missing = [name for name, url in (("embed_url", embed_url), ("generation_url", generation_url)) if not url]
    return f"the `{BLOCK}:` block lacks {' and '.join(missing)}, and has no url for both"


def plan_write(path: Path, wanted: RemoteBlock) -> Change:
    """What writing `wanted` would do to the file; nothing is written.

    Raises ConfigError for a file that cannot be read or cannot be edited safely, naming line and fix.
    """
    return plan_edit(path, lambda text: splice(text or "", wanted, name=path.name), private=wanted.has_literal_key)


def plan_remove(path: Path) -> Change:
    """What taking the `remote:` block out of the file would do; nothing is written. No file is nothing to do.

    Raises ConfigError for a file that cannot be read or cannot be edited safely, naming line and fix.
    """
    return plan_edit(path, lambda text: None if text is None else cut(text, name=path.name), removal=True)


def plan_edit(
    path: Path, edit: Edit, *, private: bool = False, removal: bool = False, mask: Mask | None = None
) -> Change:
    """What an edit would do to the file; nothing is written. `mask` hides secrets in its diff; the default is YAML's.

    Raises ConfigError for a file that cannot be read, and what `edit` raises.
    """
    hide: Mask = mask or (lambda text, known: _mask(path.name, text, known))
    before = read_text(path)
    after = edit(before)
    return Change(path, before, after, _diff(path, before, after, hide), edit, hide, private, removal)


def apply(change: Change) -> Change:
    """Write a change, and return what was written: the change as planned, or a new one if the file changed meanwhile.

    Links are followed and stay. A file keeps its mode and its owner; a new one gets 0600, and so does one that a
    literal key goes into, together with its backup. Raises ConfigError if the file cannot be written, or keeps
    changing.
    """
    for _ in range(ATTEMPTS):
        if read_text(change.path) == change.before:
            _write(change)
            return change
        change = plan_edit(change.path, change.edit, private=change.private, removal=change.removal, mask=change.mask)
    raise ConfigError(
        f"{change.path} changes all the time",
        hint="stop the program that writes it, and try again",
        code="config_file.busy",
    )


def read_text(path: Path) -> str | None:
    """The file's text, byte order mark and line ends included; None when there is no file.

    Raises ConfigError for what is there and cannot be read as UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is not a file", hint="name a file with --file", code="config_file.unreadable")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            hint="check the path and its permissions, or name another file with --file",
            code="config_file.unreadable",
        ) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path.name}, line {line}: this is not UTF-8", hint="save the file as UTF-8", code="config_file.unreadable"
        ) from error


def _write(change: Change) -> None:
    if change.after is None:
        return
    # realpath, since replacing a link would leave its target as it was
    target = Path(os.path.realpath(change.path))
    try:
        old = None if change.created else target.stat()
        mode = stat.S_IMODE(old.st_mode) if old else 0o600
        new_mode = mode & 0o600 if change.private else mode
        if not change.changed:
            if new_mode != mode:
                target.chmod(new_mode)
            return
        if old and not os.access(target, os.W_OK):
            raise PermissionError(0, "it is read-only")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (backup := change.backup) and change.before is not None:
            # it may hold the key that stood there before
            atomic.put(backup, change.before, mode=new_mode, owner=old)
        atomic.put(target, change.after, mode=new_mode, owner=old)
    except OSError as error:
        raise ConfigError(
            f"{change.path} cannot be written: {error.strerror}",
            hint="check the permissions of the file and its folder, or name another file with --file",
            code="config_file.unwritable",
        ) from error


def _diff(path: Path, before: str | None, after: str | None, mask: Mask) -> str:
    """A unified diff in which every literal key is hidden, a new one marked as such."""
    old_text, old_keys = mask(before or "", None)
    new_text, _ = mask(after or "", old_keys)
    lines = difflib.unified_diff(
        _split(old_text),
        _split(new_text),
        fromfile="/dev/null" if before is None else str(path),
        tofile=str(path),
        lineterm="",
    )
    return "".join(f"{line}\n" for line in lines)


def _split(text: str) -> list[str]:
    """Lines as YAML counts them; str.splitlines would also split at form feeds and the like."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _mask(name: str, text: str, known: frozenset[str] | None) -> tuple[str, frozenset[str]]:
    """`text` with its literal keys hidden, and those keys; the ones not in `known` are marked as new."""
    document = parse(text, name)
    secrets = [
        value
        for node in (document.root.walk() if document.root else [])
        for key, value in node.pairs
        if value.kind == "scalar" and value.value and _SECRET.search(key.value) and is_literal(value.value)
    ]
    masked = document.text
    for node in sorted(secrets, key=lambda node: node.start, reverse=True):
        end = node.start + len(document.text[node.start : node.end].rstrip())
        label = HIDDEN if known is None or node.value in known else HIDDEN_NEW
        masked = masked[: node.start] + label + masked[end:]
    masked = _SECRET_COMMENT.sub(
        lambda match: match[1] + (HIDDEN if is_literal(match[2].strip("\"'")) else match[2]), masked
    )
    masked = _USER_INFO.sub(f"//{HIDDEN}@", masked)
    return masked, frozenset(node.value for node in secrets)
