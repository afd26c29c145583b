"""A YAML text as a tree of nodes that know their places, read without constructing a single value.

QMD reads YAML 1.2 and PyYAML reads 1.1 (where `12:30` is the number 750), so nothing here turns a scalar into
anything but its text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, cast

import yaml

from qmd_remote.errors import ConfigError

MAX_DEPTH = 50
STR = "tag:yaml.org,2002:str"

# Parts of values to QMD, which writes them; PyYAML breaks a value off at them. Each has a stand-in while it reads.
_TABS_BETWEEN_WORDS = re.compile(r"""(?<=[^\s:,\-?\\\[\]{}#&*!|>'"])[ ]*\t[ \t]*(?=[^\s#:,\]}])""")
_STAND_INS = {"\t": "\ue000", "\x85": "\ue001", "\u2028": "\ue002", "\u2029": "\ue003"}
_NO_LINE_ENDS = str.maketrans({key: value for key, value in _STAND_INS.items() if key != "\t"})
_AS_WRITTEN = str.maketrans({value: key for key, value in _STAND_INS.items()})
NULL = "tag:yaml.org,2002:null"

# What YAML 1.2 reads as a number and PyYAML's rules of 1.1 take for text.
_NUMBER_1_2 = re.compile(r"[-+]?(0o[0-7]+|0x[0-9a-fA-F]+|(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)")
_WORDS_1_2 = {
    "nothing": {"", "~", "null", "Null", "NULL"},
    "truth value": {"true", "True", "TRUE", "false", "False", "FALSE"},
}
What = Literal["text", "number", "truth value", "nothing", "list", "mapping"]


class Refused(ConfigError):
    """What stands on `line` (counted from 1) of a file cannot be used. `problem` says why, without naming the place."""

    code = "config_file.unsafe"

    def __init__(self, name: str, line: int, problem: str, hint: str = "") -> None:
        super().__init__(f"{name}, line {line}: {problem}", hint=hint)
        self.line, self.problem = line, problem


@dataclass(frozen=True)
class Node:
    """One node. Two are equal when kind, text, tag, style, anchor and children are, wherever they stand.

    `value` is a scalar's text or an alias' name; `tag` is the resolved one for scalars, else the one written;
    `style` is one of "", "'", '"', "|", ">" for scalars, "block" or "flow" for collections.
    `start` and `end` are offsets into the document's text.
    """

    kind: Literal["scalar", "mapping", "sequence", "alias"]
    start: int = field(compare=False)
    end: int = field(compare=False)
    value: str = ""
    tag: str = ""
    tagged: bool = False
    style: str = ""
    anchor: str = ""
    pairs: tuple[tuple[Node, Node], ...] = ()
    items: tuple[Node, ...] = ()

    @property
    def is_null(self) -> bool:
        """Whether the node is a null that is written without an anchor or a tag: nothing, `~` or `null`."""
        return self.kind == "scalar" and self.tag == NULL and not (self.tagged or self.anchor)

    @property
    def is_text(self) -> bool:
        """Whether both YAML 1.1 and 1.2 read the node as the text in `value`."""
        return self.kind == "scalar" and self.tag == STR and (self.style != "" or not _NUMBER_1_2.fullmatch(self.value))

    @property
    def what(self) -> What:
        """What QMD, which reads YAML 1.2, makes of the node; an alias counts as text, so resolve it first."""
        if self.kind in {"mapping", "sequence"}:
            return "mapping" if self.kind == "mapping" else "list"
        if self.style or self.tagged or self.kind == "alias":
            return "text"
        if _NUMBER_1_2.fullmatch(self.value):
            return "number"
        words = (what for what, words in _WORDS_1_2.items() if self.value in words)
        return cast("What", next(words, "text"))

    def get(self, key: str) -> tuple[Node, Node] | None:
        """The (key, value) pair of a mapping under a scalar key, however that is quoted."""
        return next((pair for pair in self.pairs if pair[0].kind == "scalar" and pair[0].value == key), None)

    def walk(self) -> list[Node]:
        """The node and everything in it, in the order of the text."""
        children = [child for pair in self.pairs for child in pair] + list(self.items)
        return [self, *(node for child in children for node in child.walk())]


@dataclass(frozen=True)
class Document:
    """The one document of a file. `text` lacks the byte order mark, which `bom` holds.

    `root` is None in a file without any content; `end_marker` is the offset of a closing `...`;
    `explicit_key` that of the first `? key`.
    """

    name: str
    bom: str
    text: str
    root: Node | None
    anchors: dict[str, Node]
    explicit_start: bool
    end_marker: int | None
    explicit_key: int | None

    def column(self, offset: int) -> int:
        """The column, counted from 0, of a place in the text."""
        return offset - (self.text.rfind("\n", 0, offset) + 1)

    def line(self, offset: int) -> int:
        """The line, counted from 1, of a place in the text."""
        return self.text.count("\n", 0, offset) + 1

    def resolve(self, node: Node) -> Node:
        """The node that an alias stands for; any other node is itself."""
        return self.anchors[node.value] if node.kind == "alias" else node

    def refuse(self, offset: int, problem: str, hint: str = "") -> NoReturn:
        """Raise Refused for a place in the text."""
        refuse(self.name, self.text, offset, problem, hint)


def refuse(name: str, text: str, offset: int, problem: str, hint: str = "") -> NoReturn:
    """Raise the Refused that names the file, the line of `offset`, the problem and the fix."""
    raise Refused(name, text.count("\n", 0, offset) + 1, problem, hint)


class _Loader(yaml.SafeLoader):
    explicit_key: int | None = None

    def fetch_key(self) -> None:
        """Note the first `?`: only an explicit key comes here."""
        if self.explicit_key is None:
            self.explicit_key = self.get_mark().index
        super().fetch_key()

    # PyYAML's types leave these three open.
    def look(self) -> Any:
        """The next event, which stays."""
        return self.peek_event()  # type: ignore[no-untyped-call]

    def take(self) -> Any:
        """The next event."""
        return self.get_event()  # type: ignore[no-untyped-call]

    def tag(self, event: Any) -> str:
        """The tag of a scalar event: the one written, else the one its text and quotes imply."""
        if event.tag not in {None, "!"}:
            return str(event.tag)
        return str(self.resolve(yaml.ScalarNode, event.value, event.implicit))  # type: ignore[no-untyped-call]


def parse(text: str, name: str = "index.yml") -> Document:
    """Read one document.

    Raises Refused, which names the line, for what QMD cannot read either: broken YAML, tabs for indentation, several
    documents, duplicate keys.
    """
    bom, body = (text[0], text[1:]) if text.startswith("\ufeff") else ("", text)
    try:
        loader = _Loader(_as_pyyaml_reads(body))
        try:
            return _Builder(name, bom, body, loader).document()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse_broken(name, body, mark.index if mark else 0, error.problem or "it is not YAML")
    except yaml.reader.ReaderError as error:
        character = f"U+{ord(body[error.position]):04X}"
        refuse(
            name, body, error.position, f"the character {character} is not allowed in YAML", f"delete the {character}"
        )


def _as_pyyaml_reads(text: str) -> str:
    """`text` with stand-ins for tabs between words, and for three line ends that YAML 1.2 no longer counts as such."""
    return _TABS_BETWEEN_WORDS.sub(
        lambda found: found[0].replace("\t", _STAND_INS["\t"]), text.translate(_NO_LINE_ENDS)
    )


def _refuse_broken(name: str, text: str, offset: int, problem: str) -> NoReturn:
    start = text.rfind("\n", 0, offset) + 1
    line = text[start:].split("\n", 1)[0]
    if text[offset : offset + 1] == "\t" or "\t" in line[: len(line) - len(line.lstrip())]:
        refuse(name, text, offset, "a tab stands where YAML allows only spaces", "replace the tab by spaces")
    refuse(name, text, offset, f"this is not valid YAML: {problem}", "correct that line; QMD cannot read it either")


class _Builder:
    """Turns the loader's events into a Document."""

    def __init__(self, name: str, bom: str, text: str, loader: _Loader) -> None:
        self.name, self.bom, self.text, self.loader = name, bom, text, loader
        self.anchors: dict[str, Node] = {}
        self.open: set[str] = set()

    def document(self) -> Document:
        root, explicit_start, end_marker = None, False, None
        self.loader.take()  # the start of the stream
        if self.loader.check_event(yaml.DocumentStartEvent):
            explicit_start = bool(self.loader.take().explicit)
            root = self.node(0)
            end = self.loader.take()
            end_marker = end.start_mark.index if end.explicit else None
        if self.loader.check_event(yaml.DocumentStartEvent):
            self.refuse(
                self.loader.look().start_mark.index,
                "a second document starts here, and QMD reads files of one document only",
                "remove the `---` line, or move what follows into a file of its own",
            )
        if root is not None and root.is_null and root.value == "":
            root = None
        return Document(
            self.name,
            self.bom,
            self.text,
            root,
            self.anchors,
            explicit_start,
            end_marker,
            self.loader.explicit_key,
        )

    def refuse(self, offset: int, problem: str, hint: str) -> NoReturn:
        refuse(self.name, self.text, offset, problem, hint)

    def node(self, depth: int) -> Node:
        event = self.loader.take()
        start, end, anchor = event.start_mark.index, event.end_mark.index, event.anchor or ""
        if depth > MAX_DEPTH:
            self.refuse(start, f"the nesting is deeper than {MAX_DEPTH} levels", "QMD's settings need four")
        if isinstance(event, yaml.AliasEvent):
            if anchor not in self.anchors and anchor not in self.open:
                self.refuse(start, f"the alias *{anchor} has no anchor", f"define &{anchor} above, or write the value")
            return Node("alias", start, end, value=anchor)
        self.open.add(anchor)
        node = self.scalar(event) if isinstance(event, yaml.ScalarEvent) else self.collection(event, depth)
        if anchor:
            self.anchors[anchor] = node
        return node

    def scalar(self, event: Any) -> Node:
        return Node(
            "scalar",
            event.start_mark.index,
            event.end_mark.index,
            value=event.value.translate(_AS_WRITTEN),
            tag=self.loader.tag(event),
            tagged=event.tag is not None,
            style=event.style or "",
            anchor=event.anchor or "",
        )

    def collection(self, event: Any, depth: int) -> Node:
        children: list[Node] = []
        while not self.loader.check_event(yaml.CollectionEndEvent):
            children.append(self.node(depth + 1))
        end = self.loader.take().end_mark.index
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        pairs = tuple(zip(children[::2], children[1::2], strict=True)) if is_mapping else ()
        self.refuse_duplicates(pairs)
        return Node(
            "mapping" if is_mapping else "sequence",
            event.start_mark.index,
            end,
            tag=event.tag or "",
            tagged=event.tag is not None,
            style="flow" if event.flow_style else "block",
            anchor=event.anchor or "",
            pairs=pairs,
            items=() if is_mapping else tuple(children),
        )

    def refuse_duplicates(self, pairs: tuple[tuple[Node, Node], ...]) -> None:
        seen: dict[str, int] = {}
        for key, _ in pairs:
            if key.kind == "scalar" and key.value in seen:
                first = self.text.count("\n", 0, seen[key.value]) + 1
                self.refuse(
                    key.start,
                    f"the key '{key.value}' stands here a second time (first on line {first})",
                    "remove one of the two; QMD cannot read the file as it is",
                )
            if key.kind == "scalar":
                seen[key.value] = key.start
