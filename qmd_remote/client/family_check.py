"""Which families of clients a configuration file belongs to, and what is wrong with it for one of them. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from qmd_remote.client import json_splice
from qmd_remote.client.config_check import Checked, Facts
from qmd_remote.client.config_values import EXAMPLE, Finding, Severity, cleartext
from qmd_remote.client.families import DEFAULT, FAMILIES, Family, Path, Role
from qmd_remote.client.own_values import is_server
from qmd_remote.client.qmd_config import HIDDEN, normalise_url
from qmd_remote.client.remote_block import expand, is_literal
from qmd_remote.client.yaml_document import Document, Node, Refused, What, parse
from qmd_remote.client.yaml_splice import BLOCK
from qmd_remote.errors import UsageError

_OPEN_TO_OTHERS = 0o077
_NAMED: Mapping[Role, str] = {"embed": "embed", "rerank": "rerank", "expand": "expand|generate"}
_JSON_KINDS: Mapping[type, What] = {
    str: "text",
    dict: "mapping",
    list: "list",
    bool: "truth value",
    type(None): "nothing",
}


@dataclass(frozen=True)
class Entry:
    """A key's value: its text, empty for what is none to QMD, what QMD takes it for, and its line."""

    text: str = field(repr=False)
    what: What
    line: int


Entries = Mapping[Path, Entry]


def entries(text: str, name: str, *, as_json: bool) -> Entries:
    """Every key of the first three levels, by its path. Raises Refused for what QMD cannot read."""
    if as_json:
        bare = text.removeprefix("\ufeff")
        return dict(_json_entries(bare, json_splice.top(bare, name), name))
    document = parse(text, name)
    return dict(_yaml_entries(document, document.root)) if document.root else {}


def _yaml_entries(document: Document, node: Node, above: Path = ()) -> Iterator[tuple[Path, Entry]]:
    for key, given in document.resolve(node).pairs:
        value = document.resolve(given)
        path = (*above, key.value)
        yield path, Entry(value.value if value.what == "text" else "", value.what, document.line(key.start))
        if value.kind == "mapping" and len(path) < 3:
            yield from _yaml_entries(document, value, path)


def _json_entries(
    text: str, there: list[json_splice.Member], name: str, above: Path = ()
) -> Iterator[tuple[Path, Entry]]:
    for member in there:
        path, value = (*above, member.key), member.value
        shown = value if isinstance(value, str) else ""
        yield path, Entry(shown, _JSON_KINDS.get(type(value), "number"), json_splice.line(text, member.start))
        if isinstance(value, dict) and len(path) < 3:
            yield from _json_entries(text, json_splice.members(text, member.value_start, name), name, path)


def families_of(found: Entries, *, as_json: bool) -> list[Family]:
    """The families whose keys a file has, the default one first."""
    kind = "json" if as_json else "yaml"
    return [family for family in FAMILIES if family.file == kind and _has(found, family)]


def _has(found: Entries, family: Family) -> bool:
    if family.name == DEFAULT:
        return (BLOCK,) in found
    if family.name == "model-urls":
        return is_server(_text(found, ("models", "embed")))
    if family.name == "llm-provider":
        return ("llm",) in found
    return any(path in found for path, _ in family.paths)


def check_family(facts: Facts, family: Family, found: Entries) -> Checked:
    """Judge a file for one family other than the default one: where it sends what, and what is wrong."""
    usable = {path: url for path, template in family.paths if "_url}" in template and (url := _usable(found, path))}
    goes = {role: path for role in family.roles for path in usable if _is_for(family, path, role)}
    embed, generation = goes.get("embed", goes.get("rerank")), goes.get("expand")
    key = next((path for path, template in family.paths if template == "{key}" and _text(found, path)), None)
    raw_key = _text(found, key) if key else ""
    places = {"embed_url": embed, "generation_url": generation, "api_key": key}
    embed_url = usable[embed] if embed else None
    checked = Checked(
        path=facts.path,
        client=family.name,
        # there is one URL for embedding and reranking here, so rankings that go elsewhere are not spoken of
        roles=tuple(role for role, path in goes.items() if role == "expand" or usable[path] == embed_url),
        reason="" if embed or generation else f"it has no URL that {family.name} can use",
        embed_url=embed_url,
        generation_url=usable[generation] if generation else None,
        api_key=(HIDDEN if is_literal(raw_key) else raw_key) or None,
        key=expand(raw_key, dict(facts.env)),
        lines={name: found[path].line for name, path in places.items() if path},
    )
    findings = list(_findings(facts, family, found, raw_key))
    if checked.reason and all(finding.severity != "error" for finding in findings):
        fix = f"qmd-remote config write --client {family.name}"
        findings.append(Finding("error", "client.missing", f"the file has no URL for {family.name}", fix))
    return checked.with_findings(iter(findings))


def _is_for(family: Family, path: Path, role: Role) -> bool:
    """Whether the URL of a key serves a role: by the key's name, or because there is no other."""
    return family.one_url or re.search(_NAMED[role], ".".join(path)) is not None


def _findings(facts: Facts, family: Family, found: Entries, raw_key: str) -> Iterator[Finding]:
    yield from _halves(family, found)
    for path, template in family.paths:
        there = found.get(path)
        if there is None:
            continue
        if there.what not in {"text", "nothing"}:
            message = f"`{'.'.join(path)}` is a {there.what} to QMD, not a text"
            fix = f"put a text in double quotes on line {there.line}"
            yield Finding("error", "value.not_text", message, fix, there.line)
        elif "_url}" in template and there.text:
            yield from _url(family, path, template, there, with_key=bool(raw_key))
        elif template == "{key}" and there.text:
            yield from _key(facts, path, there)
        elif "{" not in template and there.text not in {"", template}:
            message = f"`{'.'.join(path)}` is not {template}, so another service is asked"
            yield Finding("error", "provider.other", message, _line(family, path, there, template), there.line)
    if family.limits:
        yield Finding("info", "client.limits", family.limits, "docs/clients/README.md says what each client can")
    if family.note:
        yield Finding("info", "client.note", family.note.partition(":")[0], family.note.partition(": ")[2])


def _halves(family: Family, found: Entries) -> Iterator[Finding]:
    """Keys without which the others are of no use: a task without its URL, or a URL without its model."""
    write = f"qmd-remote config write --client {family.name}"
    twins = [(place, name) for (place, _), (name, _) in zip(family.file_keys, family.variables, strict=False)]
    for path, template in family.paths:
        if template == "{key}" or _text(found, path) or (path in found and found[path].what not in {"text", "nothing"}):
            continue
        beside = [other for other, _ in family.paths if _together(family, path, other) and _text(found, other)]
        if not beside:
            continue
        severity: Severity = (
            "error" if not family.variables and ("_url}" in template or "{" not in template) else "warning"
        )
        variable = next((name for place, name in twins if place == ".".join(path)), None)
        also = f"; the variable {variable} may have it" if variable else ""
        message = f"`{'.'.join(path)}` is {'empty' if path in found else 'missing'}{also}"
        yield Finding(severity, "client.half", message, write, found[beside[0]].line)


def _together(family: Family, one: Path, other: Path) -> bool:
    """Whether two keys need each other: all of a family, but tasks of a provider each for itself."""
    return one != other and (len(one) < 3 or one[:2] == other[:2])


def _url(family: Family, path: Path, template: str, there: Entry, *, with_key: bool) -> Iterator[Finding]:
    problem = _url_problem(family, template, there.text)
    if problem:
        code, what, value = problem
        yield Finding(
            "error", f"url.{code}", f"`{'.'.join(path)}` {what}", _line(family, path, there, value), there.line
        )
    elif with_key and (url := _normalised(there.text.partition("#")[0])):
        yield from cleartext(path[-1], url, there.line)


def _url_problem(family: Family, template: str, text: str) -> tuple[str, str, str] | None:
    """(code, what the value does, what to write instead), which never repeat what may be a password."""
    with_model = "#" in template
    url, _, model = text.partition("#") if with_model else (text, "", "")
    example = f"{EXAMPLE}{family.base_path}{'#MODEL' if with_model else ''}"
    if "${" in url:
        return "variable", "holds ${…}, which is not filled in", example
    try:
        bare = normalise_url(url)
    except UsageError as error:
        if "@" in text:
            return "credentials", "carries a user name or a password, and requests to such a URL fail", example
        # behind the colon stands a part of the value
        return "unusable", f"cannot be used: {error.message.partition(': ')[0]}", example
    known = model if re.fullmatch(r"[\w./:-]+", model) else "MODEL"
    wanted = f"{bare}{family.base_path}{f'#{known}' if with_model else ''}"
    if with_model and not model:
        return "no_model", "names no model behind a #", wanted
    if text != text.strip():
        return "spaces", "begins or ends with spaces, which are sent", wanted
    found = _ending_problem(family, urlsplit(url).path.rstrip("/"))
    return (*found, wanted) if found else None


def _ending_problem(family: Family, ending: str) -> tuple[str, str] | None:
    if ending.endswith("/v1/v1") or (not family.base_path and ending.endswith("/v1")):
        return "v1", "has a /v1 too many at its end"
    if family.base_path and not family.any_base_path and not ending.endswith("/v1"):
        return "v1_missing", "needs /v1 at its end"
    return None


def _line(family: Family, path: Path, there: Entry, value: str) -> str:
    """What to write, as the file's language has it."""
    written = f'"{path[-1]}": "{value}"' if family.file == "json" else f"{path[-1]}: {value}"
    return f"write on line {there.line}: {written}"


def _key(facts: Facts, path: Path, there: Entry) -> Iterator[Finding]:
    """No text here repeats a literal key."""
    name = ".".join(path)
    if not is_literal(there.text):
        message = f"`{name}` refers to a variable, and only the `{BLOCK}:` block is known to have them filled in"
        fix = "give the key by the client's own variable, or write the key itself (mode 0600)"
        yield Finding("warning", "key.reference", message, fix, there.line)
    elif facts.mode is not None and facts.mode & _OPEN_TO_OTHERS:
        message = f"`{name}` holds the key itself, and others can read the file (mode {facts.mode:04o})"
        yield Finding("warning", "key.readable", message, f"chmod 600 {shlex.quote(str(facts.path))}", there.line)


def _normalised(text: str) -> str | None:
    """A base URL without /v1; None for what is none."""
    try:
        return normalise_url(text)
    except UsageError:
        return None


def _usable(found: Entries, path: Path) -> str | None:
    return _normalised(_text(found, path).partition("#")[0])


def _text(found: Entries, path: Path) -> str:
    there = found.get(path)
    return there.text if there and there.what == "text" else ""


def unreadable(facts: Facts, family: str, refused: Refused) -> Checked:
    """The judgement on a file that no client can read."""
    reason = f"it cannot read the file (line {refused.line}: {refused.problem})"
    finding = Finding("error", "file.unreadable", refused.problem, refused.hint, refused.line)
    return Checked(path=facts.path, client=family, reason=reason, findings=(finding,))


def others_there(found: Entries, chosen: str, *, as_json: bool) -> Iterator[Finding]:
    """What the file holds for other clients."""
    for family in families_of(found, as_json=as_json):
        if family.name != chosen:
            message = f"the file also has the keys of {family.name} ({family.about})"
            yield Finding("info", "client.other", message, f"qmd-remote config check --client {family.name}")
