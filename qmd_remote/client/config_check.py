"""What QMD will really do with a configuration file: what was read, and facts, → findings. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from qmd_remote.client.causes import Cause, shown
from qmd_remote.client.config_values import (
    KEYS,
    MODEL_KEYS,
    Finding,
    cleartext,
    key_findings,
    nearest,
    unknown_key,
    url_findings,
)
from qmd_remote.client.families import DEFAULT, EVERYTHING, Role
from qmd_remote.client.qmd_config import HIDDEN, normalise_url
from qmd_remote.client.remote_block import ModelNames, expand, is_literal
from qmd_remote.client.yaml_document import Document, Node, Refused, parse
from qmd_remote.client.yaml_splice import BLOCK
from qmd_remote.errors import Exit, UsageError

WRITE = "qmd-remote config write"
URL_KEYS = ("embed_url", "generation_url")
TASKS: Mapping[Role, str] = {"embed": "embedding", "rerank": "reranking", "expand": "query expansion"}
RANK = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found on disk. `text` is None for no file; `unreadable` says why there is one without a text.

    `mode` has the permission bits, `project_file` is a project's own file that QMD takes instead of this one, and
    `without_block` names index files beside this one that have no `remote:` block.
    """

    path: Path
    text: str | None = field(default=None, repr=False)
    unreadable: str = ""
    mode: int | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    project_file: Path | None = None
    without_block: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What the services said: why an exchange failed, by URL, and the names of their models as far as they told."""

    causes: Mapping[str, Cause]
    models: ModelNames


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The judgement. `reason` says why QMD uses local models, and is empty when it does not.

    `client` is the family of clients that is meant, and `roles` what it asks servers for. `key` is what QMD would send;
    `lines` has the line of each key that is there. `sound` tells whether it makes sense to ask the services.
    """

    path: Path
    client: str = DEFAULT
    roles: tuple[Role, ...] = EVERYTHING
    reason: str = ""
    embed_url: str | None = None
    generation_url: str | None = None
    api_key: str | None = None
    key: str = field(default="", repr=False)
    models: ModelNames = field(default_factory=ModelNames)
    lines: Mapping[str, int] = field(default_factory=dict, repr=False)
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Literal["remote", "local"]:
        """Which models QMD uses."""
        return "local" if self.reason else "remote"

    @property
    def sound(self) -> bool:
        """Whether QMD could send a request, and a key would not be shown to strangers by asking."""
        return self.exit_code == Exit.OK and "url.cleartext" not in {finding.code for finding in self.findings}

    @property
    def exit_code(self) -> Exit:
        """CONFIGURATION where the file makes QMD fail or stay local, FAILED where only a server refuses."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if self.reason or any(not finding.code.startswith("server.") for finding in errors):
            return Exit.CONFIGURATION
        return Exit.FAILED if errors else Exit.OK

    @property
    def sentence(self) -> str:
        """What QMD does, in one sentence."""
        if self.reason:
            return f"QMD uses its local models, because {self.reason}"
        what = " and ".join(f"{tasks} to {url}" for url, tasks in self._tasks().items())
        verb = "tries to send" if self.exit_code == Exit.CONFIGURATION else "sends"
        key = {None: "without a key", HIDDEN: "with the key that stands in the file"}
        fails = ", and fails" if verb != "sends" else ""
        return f"QMD {verb} {what}, {key.get(self.api_key, f'with the key from {self.api_key}')}{fails}"

    def _tasks(self) -> dict[str, str]:
        """What goes to each URL, in words."""
        found: dict[str, list[str]] = {}
        for role in self.roles:
            url = self.generation_url if role == "expand" else self.embed_url
            if url or self.client == DEFAULT:
                found.setdefault(without_secrets(url) if url else "nowhere", []).append(TASKS[role])
        return {url: "everything" if len(tasks) == len(TASKS) else " and ".join(tasks) for url, tasks in found.items()}

    def with_findings(self, more: Iterator[Finding]) -> Checked:
        """The same with more findings, problems first, and in the order of the file."""
        found = sorted([*self.findings, *more], key=lambda one: (RANK[one.severity], one.line or 0))
        return replace(self, findings=tuple(found))


def without_secrets(url: str) -> str:
    """A text that stands for a URL, fit for messages also where it is none."""
    try:
        normalise_url(url)
    except UsageError:
        # what cannot be taken apart is cut at the last @: before it a password may stand, with any sign in it
        scheme = re.match(r"\s*https?://", url, re.IGNORECASE)
        kept = f"{scheme[0] if scheme else ''}{url.rpartition('@')[2]}" if "@" in url else url
        return re.split(r"[?#]", kept)[0]
    return shown(url)


def check_file(facts: Facts) -> Checked:
    """Judge the file alone."""
    if facts.unreadable or facts.text is None:
        checked = _without_text(facts)
    else:
        try:
            document = parse(facts.text, facts.path.name)
        except Refused as refused:
            checked = _unparsable(facts.path, refused)
        else:
            block = _Block(document)
            checked = _judge(facts, block) if block.is_mapping else _no_mapping(facts.path, block)
    return checked.with_findings(_around(facts, checked))


def check_answers(checked: Checked, answers: Answers) -> Checked:
    """Add what the services' answers tell."""
    return checked.with_findings(_from_answers(checked, answers))


def _local(path: Path, code: str, reason: str, fix: str, *, line: int | None = None, message: str = "") -> Checked:
    return Checked(path=path, reason=reason, findings=(Finding("error", code, message or reason, fix, line),))


def _without_text(facts: Facts) -> Checked:
    if facts.unreadable:
        fix = "make it a readable text file in UTF-8"
        return _local(facts.path, "file.unreadable", facts.unreadable, fix)
    return _local(facts.path, "file.missing", f"there is no file {facts.path}", WRITE)


def _unparsable(path: Path, refused: Refused) -> Checked:
    reason = f"it cannot read the file and does not say so (line {refused.line}: {refused.problem})"
    return _local(path, "yaml.unreadable", reason, refused.hint, line=refused.line, message=refused.problem)


class _Block:
    """The `remote:` block of a document, with aliases resolved as QMD does."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.root = document.root and document.resolve(document.root)
        self.pair = self.root.get(BLOCK) if self.root else None
        self.node = document.resolve(self.pair[1]) if self.pair else None

    @property
    def is_mapping(self) -> bool:
        return self.node is not None and self.node.what == "mapping"

    @property
    def line(self) -> int | None:
        return self.document.line(self.pair[0].start) if self.pair else None

    @cached_property
    def entries(self) -> dict[str, tuple[Node, Node, int]]:
        """Each key of the block with its node, its value and its line."""
        return self.below(self.node)

    def below(self, node: Node | None) -> dict[str, tuple[Node, Node, int]]:
        pairs = node.pairs if node else ()
        return {
            key.value: (key, self.document.resolve(value), self.document.line(key.start))
            for key, value in pairs
            if key.kind == "scalar"
        }

    def text(self, key: str) -> str | None:
        """A text that is not empty; also the text of what QMD takes for a number."""
        _, node, _ = self.entries.get(key, (None, None, 0))
        return node.value or None if node and node.kind == "scalar" and node.what != "nothing" else None

    def has(self, key: str) -> bool:
        """Whether a key holds anything, be it usable or not."""
        return key in self.entries and (self.text(key) is not None or self.entries[key][1].what in {"list", "mapping"})


def _no_mapping(path: Path, block: _Block) -> Checked:
    if block.root and block.root.what != "mapping":
        line = block.document.line(block.root.start)
        return _local(path, "file.no_mapping", "the file holds no `key: value` lines", "write it anew", line=line)
    if block.node is None:
        return _no_block(path, block)
    if block.node.what != "nothing":
        fix = f"remove what line {block.line} holds, then: {WRITE}"
        reason = f"`{BLOCK}:` holds a {block.node.what} instead of keys"
        return _local(path, "remote.no_mapping", reason, fix, line=block.line)
    stray = [key for key in KEYS[:-1] if block.root and block.root.get(key)]
    fix = f"indent {' and '.join(stray)} by two spaces, below line {block.line}" if stray else WRITE
    return _local(path, "remote.empty", f"the `{BLOCK}:` block is empty", fix, line=block.line)


def _no_block(path: Path, block: _Block) -> Checked:
    names = block.below(block.root)
    meant = next((name for name in names if nearest(name, (BLOCK,))), None)
    if meant:
        line = names[meant][2]
        reason = f"the file has no `{BLOCK}:` block, but one named `{meant}`"
        return _local(path, "remote.missing", reason, f"rename it to {BLOCK} on line {line}", line=line)
    return _local(path, "remote.missing", f"the file has no `{BLOCK}:` block", WRITE)


def _judge(facts: Facts, block: _Block) -> Checked:
    raw_key = block.text("api_key")
    names = block.below(block.entries["models"][1]) if "models" in block.entries else {}
    missing = [key for key in URL_KEYS if not block.has(key) and not block.has("url")]
    lines = {BLOCK: block.line or 1, **{key: line for key, (_, _, line) in block.entries.items()}}
    lines |= {f"models.{key}": line for key, (_, _, line) in names.items()}
    checked = Checked(
        path=facts.path,
        reason=f"the `{BLOCK}:` block lacks {' and '.join(missing)}" if missing else "",
        embed_url=block.text("embed_url") or block.text("url"),
        generation_url=block.text("generation_url") or block.text("url"),
        api_key=raw_key and (HIDDEN if is_literal(raw_key) else raw_key),
        key=expand(raw_key, dict(facts.env)) if raw_key else "",
        models=ModelNames(**{key: names[key][1].value for key in MODEL_KEYS if key in names and names[key][1].value}),
        lines=lines,
    )
    return checked.with_findings(_in_block(facts, block, names, missing))


def _in_block(
    facts: Facts, block: _Block, names: Mapping[str, tuple[Node, Node, int]], missing: list[str]
) -> Iterator[Finding]:
    if missing:
        what = f"`{'` and `'.join(missing)}` {'is' if len(missing) == 1 else 'are'} missing"
        fix = f"{WRITE}, or add below line {block.line}: " + ", ".join(f"{key}: http://HOST:PORT" for key in missing)
        yield Finding("error", "remote.half", f"{what}, and QMD ignores a block without both", fix, block.line)
    for name in ("url", *URL_KEYS):
        if block.has(name):
            _, node, line = block.entries[name]
            found = list(url_findings(name, node, line))
            yield from found or (cleartext(name, node.value, line) if block.text("api_key") else ())
    if "api_key" in block.entries:
        _, node, line = block.entries["api_key"]
        yield from key_findings(node, line, facts.env, facts.path, facts.mode)
    for name, (key, _, line) in block.entries.items():
        if name not in KEYS:
            yield unknown_key(BLOCK, key, line, KEYS, block.entries)
    yield from _in_models(block, names)


def _in_models(block: _Block, names: Mapping[str, tuple[Node, Node, int]]) -> Iterator[Finding]:
    _, node, line = block.entries.get("models", (None, None, 0))
    if node and node.what not in {"mapping", "nothing"}:
        message = f"`models` holds a {node.what} instead of keys"
        yield Finding("warning", "models.no_mapping", message, f"remove line {line}, then: {WRITE}", line)
    for name, (key, value, at) in names.items():
        if name not in MODEL_KEYS:
            yield unknown_key(f"{BLOCK}.models", key, at, MODEL_KEYS, names)
        elif value.what not in {"text", "nothing"}:
            fix = f"write on line {at} the name in double quotes"
            yield Finding("warning", "models.not_text", f"`models.{name}` is a {value.what} to QMD", fix, at)


def project_findings(facts: Facts) -> Iterator[Finding]:
    """A project's own file, which QMD takes instead."""
    if facts.project_file:
        message = f"in this folder QMD reads {facts.project_file} instead, unless it is called with --index"
        fix = f"qmd-remote config check --file {shlex.quote(str(facts.project_file))}"
        yield Finding("warning", "file.project", message, fix)


def _around(facts: Facts, checked: Checked) -> Iterator[Finding]:
    yield from project_findings(facts)
    if checked.verdict == "remote":
        for name in facts.without_block:
            message = f"{name}.yml beside this file has no `{BLOCK}:` block: `qmd --index {name}` uses local models"
            fix = f"qmd-remote config write --index {shlex.quote(name)}"
            yield Finding("info", "index.local", message, fix)


def _from_answers(checked: Checked, answers: Answers) -> Iterator[Finding]:
    unset = any(finding.code == "key.unset" for finding in checked.findings)
    for url in dict.fromkeys([checked.embed_url, checked.generation_url]):
        cause = answers.causes.get(url or "")
        if cause is None:
            continue
        if cause.code != "unauthorized":
            yield Finding("warning", f"server.{cause.code}", cause.message, cause.fix, _line_of(checked, url))
        elif not unset:
            line = checked.lines.get("api_key")
            yield Finding("error", "server.unauthorized", cause.message, _key_fix(checked, line), line)
    for role in MODEL_KEYS:
        ours, theirs = getattr(checked.models, role), getattr(answers.models, role)
        if ours and theirs and ours != theirs:
            message = f"`models.{role}` is {ours}, and the server's model is {_printable(theirs)}"
            yield Finding("warning", "models.differ", message, WRITE, checked.lines.get(f"models.{role}"))


def _line_of(checked: Checked, url: str | None) -> int | None:
    key = next((key for key in URL_KEYS if getattr(checked, key) == url and key in checked.lines), "url")
    return checked.lines.get(key)


def _key_fix(checked: Checked, line: int | None) -> str:
    if checked.client != DEFAULT:
        if checked.api_key is None:
            return f"{WRITE} --client {checked.client} --api-key-literal, with the server's key in QMD_REMOTE_API_KEY"
        return f"write the server's key on line {line}"
    if checked.api_key is None:
        return f"{WRITE} --api-key-env NAME, the variable that holds the server's key"
    if checked.api_key == HIDDEN:
        return f"write the server's key on line {line}"
    return f"set {checked.api_key} to the server's key, here and where QMD runs"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:200])
