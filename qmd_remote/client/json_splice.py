"""Edit keys of one top-level object in a JSON text, and nothing else: text in, text out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from qmd_remote.client.remote_block import Tree
from qmd_remote.client.yaml_document import Refused

_SPACE = re.compile(r"[ \t\r\n]*")
_SECRET = re.compile(
    r'(?i)("[^"\n]*(?:(?:api[-_]?key|secret|password|authorization)[^"\n]*|token)"\s*:\s*)("(?:[^"\\]|\\.)*"|[-+\w.]+)'
    r'|(?<=:)((?:\\?/){2})[^\s"]*@'
)
_NO_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


# JSON.parse knows no NaN and reads each number as a float; Python's int() has a limit of digits
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant)


@dataclass(frozen=True)
class Member:
    """A key of an object with its value, and where both stand in the text."""

    key: str
    value: Any
    start: int
    value_start: int
    end: int


def read(text: str, name: str = "config.json") -> dict[str, Any]:
    """The object in a text; none in an empty one. Raises Refused, naming the line, for anything else."""
    return _read(text.removeprefix("\ufeff"), name)


def _read(bare: str, name: str) -> dict[str, Any]:
    if not bare.strip():
        return {}
    try:
        value = _DECODER.decode(bare)
    except json.JSONDecodeError as error:
        _refuse(name, bare, error.pos, f"this is not JSON: {error.msg}", "correct that line; JSON has no comments")
    except ValueError as error:
        at = next((found.start() for found in _NO_NUMBER.finditer(bare) if found[1]), 0)
        _refuse(name, bare, at, f"this is not JSON: {error} is no number there", "correct that line")
    except RecursionError:
        _refuse(name, bare, 0, "the nesting is too deep", "the file needs two levels")
    if not isinstance(value, dict):
        _refuse(name, bare, 0, "the file holds no object", 'write it as { "remote": { … } }')
    return value


def members(text: str, at: int, name: str = "config.json") -> list[Member]:
    """The members of the object that begins at `at` of a valid JSON text. Raises Refused for a key given twice."""
    found: list[Member] = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        start = at
        key, at = _DECODER.raw_decode(text, at)
        value_start = _skip(text, _skip(text, at) + 1)
        value, end = _DECODER.raw_decode(text, value_start)
        if any(member.key == key for member in found):
            _refuse(name, text, start, f"the key '{key}' stands here a second time", "remove one of the two")
        found.append(Member(key, value, start, value_start, end))
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def top(text: str, name: str = "config.json") -> list[Member]:
    """The members of the text's own object. Raises Refused for what is none."""
    return members(text, _skip(text, 0), name) if _read(text, name) or text.strip() else []


def line(text: str, offset: int) -> int:
    """The line, counted from 1, of a place in the text."""
    return text.count("\n", 0, offset) + 1


def splice(text: str, block: str, tree: Tree, *, name: str = "config.json") -> str:
    """`text` with the texts of `tree` in its object `block`; None takes a key out, and the object with its last one.

    Every other byte stays. Raises Refused, naming line and fix, for what is no JSON object, or has a key twice.
    """
    bom, body = ("\ufeff", text[1:]) if text.startswith("\ufeff") else ("", text)
    old = _read(body, name)
    if not body.strip():
        kept = {key: value for key, value in tree.items() if value is not None}
        return f"{bom}{json.dumps({block: kept}, indent=2, ensure_ascii=False)}\n" if kept else text
    after = _with_block(body, block, tree, name)
    if not _is_as_wanted(old, after, block, tree):
        _refuse(name, body, 0, "the file cannot be edited safely", f'write the object "{block}" by hand')
    return bom + after


def _is_as_wanted(old: Mapping[str, Any], after: str, block: str, tree: Tree) -> bool:
    """Whether `after` is `old` with the texts of `tree` in its object, and differs from it in nothing else."""
    own = old.get(block)
    kept = {key: value for key, value in own.items() if key not in tree} if isinstance(own, dict) else {}
    inner = kept | {key: value for key, value in tree.items() if value is not None}
    others = {key: value for key, value in old.items() if key != block}
    try:
        return bool(_DECODER.decode(after) == (others | {block: inner} if inner else others))
    except ValueError:
        return False


def masked(text: str, hidden: str) -> str:
    """`text` with the values of what may be a secret hidden, for a diff."""
    return _SECRET.sub(lambda found: f'{found[1]}"{hidden}"' if found[1] else f"{found[3]}{hidden}@", text)


def _with_block(text: str, block: str, tree: Tree, name: str) -> str:
    root = _skip(text, 0)
    step = _step(text, root, name)
    own = next((member for member in members(text, root, name) if member.key == block), None)
    if own is None:
        kept = {key: value for key, value in tree.items() if value is not None}
        return _put(text, root, block, _written(kept, step, _newline(text)), step, name) if kept else text
    if not isinstance(own.value, dict):
        problem = f'"{block}" holds no object'
        _refuse(name, text, own.value_start, problem, "remove that value")
    for key, value in tree.items():
        if not isinstance(value, str):
            text = _without(text, own.value_start, key, name)
            continue
        there = next((one for one in members(text, own.value_start, name) if one.key == key), None)
        new = json.dumps(value, ensure_ascii=False)
        if there is None:
            text = _put(text, own.value_start, key, new, step * 2, name)
        elif there.value != value:
            text = text[: there.value_start] + new + text[there.end :]
    return text if members(text, own.value_start, name) else _without(text, root, block, name)


def _put(text: str, at: int, key: str, value: str, indent: str, name: str) -> str:
    """`text` with one more member, the last, in the object at `at`."""
    there = members(text, at, name)
    new = f"{json.dumps(key, ensure_ascii=False)}: {value}"
    if there:
        before = text[at + 1 if len(there) == 1 else there[-2].end : there[-1].start].replace(",", "")
        gap = before if "\n" not in before else _newline(text) + before.rpartition("\n")[2]
        return f"{text[: there[-1].end]},{gap or ' '}{new}{text[there[-1].end :]}"
    end = _skip(text, at + 1)
    newline = _newline(text)
    outer = re.match(r"[ \t]*", text[text.rfind("\n", 0, at) + 1 :])
    return f"{text[: at + 1]}{newline}{indent}{new}{newline}{outer[0] if outer else ''}{text[end:]}"


def _without(text: str, at: int, key: str, name: str) -> str:
    there = members(text, at, name)
    place = next((index for index, member in enumerate(there) if member.key == key), None)
    if place is None:
        return text
    if place:
        return text[: there[place - 1].end] + text[there[place].end :]
    if len(there) > 1:
        return text[: there[0].start] + text[there[1].start :]
    return text[: at + 1] + text[_skip(text, there[0].end) :]


def _written(tree: Mapping[str, Any], step: str, newline: str) -> str:
    inner = f",{newline}".join(
        f"{step * 2}{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in tree.items()
    )
    return f"{{{newline}{inner}{newline}{step}}}"


def _step(text: str, root: int, name: str) -> str:
    """The indentation of one level: that of the first key, where it stands on a line of its own."""
    there = members(text, root, name)
    before = text[root + 1 : there[0].start] if there else ""
    return before.rpartition("\n")[2] or "  " if "\n" in before else "  "


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _refuse(name: str, text: str, offset: int, problem: str, hint: str) -> NoReturn:
    raise Refused(name, line(text, offset), problem, hint)
