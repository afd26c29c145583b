"""Prompts: the few words before a text that tell an embedding model what the text is for. Pure.

Models are trained with prompts of their own, and lose quality without them or with another model's. QMD's clients send
EmbeddingGemma's whatever is served, or none. So each text is first freed from a client's prefix, which tells whether
it is a query or a document and which title it has; then it gets the prompt of the model that is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qmd_remote.errors import BadRequest

Role = Literal["query", "document"]
Source = Literal["model", "registry", "none", "off"]

# What clients and models call the two roles: `input_type`, `prompt_name`, and the names in a model's own files.
NAMES: Mapping[str, Role] = {
    "query": "query",
    "search_query": "query",
    "retrieval.query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "retrieval.passage": "document",
}
TITLE = "{title}"
NO_TITLE = "none"  # EmbeddingGemma's word for it, in its prompt and in what clients send

_QUERY_TAGS = ("task: search result | query: ", "search_query: ")
_DOCUMENT_TAG = "search_document: "
_INSTRUCTED = re.compile(r"Instruct: [^\n]{0,1000}\nQuery: ?")
# the shortest title, so that a text with the same mark stays whole; and bounded, as notes may begin with "title:"
_TITLED = re.compile(r"title: (.{0,1000}?) \| text: ", re.DOTALL)


@dataclass(frozen=True)
class Tagged:
    """A text without its client's prefix, and what that prefix said: nothing, where `role` is None."""

    text: str
    role: Role | None = None
    title: str = ""


def recognise(text: str) -> Tagged:
    """Free a text from the prefix of a known client, if it begins with one."""
    for tag in _QUERY_TAGS:
        if text.startswith(tag):
            return Tagged(text[len(tag) :], "query")
    if text.startswith(_DOCUMENT_TAG):
        return Tagged(text[len(_DOCUMENT_TAG) :], "document")
    if found := _INSTRUCTED.match(text):
        return Tagged(text[found.end() :], "query")
    if found := _TITLED.match(text):
        title = found[1].strip()
        return Tagged(text[found.end() :], "document", "" if title == NO_TITLE else title)
    return Tagged(text)


@dataclass(frozen=True)
class Prompts:
    """The prompts of one model. `source` says where they come from, `reason` in words.

    `query` and `document` stand before a text; `{title}` in them is the title's place. `named` holds all that the model
    itself has, by name.
    """

    source: Source
    reason: str
    query: str = ""
    document: str = ""
    named: Mapping[str, str] = field(default_factory=dict)

    def choose(self, name: str) -> str:
        """The prompt for texts that have no prefix: `name` is one of NAMES, or one of the model's own.

        Raises BadRequest for any other name.
        """
        if name in self.named:
            return self.query if NAMES.get(name) == "query" else self.document if name in NAMES else self.named[name]
        if name in NAMES:
            return self.query if NAMES[name] == "query" else self.document
        known = ", ".join(dict.fromkeys([*self.named, "query", "document"]))
        raise BadRequest(f"'prompt_name' must be one of this model's: {known}", param="prompt_name")

    def apply(self, text: str, otherwise: str) -> str:
        """`text` with this model's prompt: that of the role in its prefix, and `otherwise` where it has none."""
        if self.source == "off":
            return text
        tagged = recognise(text)
        if tagged.role == "query" and self.query and text.startswith(self.query):
            return text  # this model's own already, to the blank: what follows it is the text
        prompt = otherwise if tagged.role is None else self.query if tagged.role == "query" else self.document
        return _filled(prompt, tagged)

    def facts(self, default: str) -> dict[str, str]:
        """What /health shows; `default` is the role of texts that nothing is said of."""
        if self.source == "off":
            return {"source": "off", "reason": self.reason}
        return {
            "source": self.source,
            "reason": self.reason,
            "query": self.query,
            "document": self.document,
            "default": default,
        }


OFF = Prompts("off", "switched off: texts are taken as they come")
NOT_POOLED = Prompts("off", "this model leaves prompts out of its vectors: texts are taken as they come")


def _filled(prompt: str, tagged: Tagged) -> str:
    if TITLE in prompt:
        return prompt.replace(TITLE, tagged.title or NO_TITLE) + tagged.text
    return f"{prompt}{tagged.title}\n{tagged.text}" if tagged.title else prompt + tagged.text


def prompts_of(own: Mapping[str, str], name: str, architecture: str = "") -> Prompts:
    """The prompts of a model: its `own`, as sentence-transformers reads them, else those its makers document.

    `name` is its hub id or its folder's; `architecture` is the `model_type` of its configuration.
    """
    query = next((own[key] for key, role in NAMES.items() if role == "query" and own.get(key)), "")
    document = next((own[key] for key, role in NAMES.items() if role == "document" and own.get(key)), "")
    if query or document:
        titled = document.replace(f"title: {NO_TITLE} |", f"title: {TITLE} |")
        return Prompts("model", "the model's own files name them", query, titled, own)
    for family in _REGISTRY:
        if family.matches(name, architecture):
            return Prompts("registry", f"as the makers of {family.name} ask for", family.query, family.document, own)
    return Prompts("none", "none is known for this model", named=own)


@dataclass(frozen=True)
class _Family:
    """Models with the same prompts, told by their names, or by an architecture that no others have."""

    name: str
    pattern: str
    query: str
    document: str = ""
    architecture: str = ""

    def matches(self, name: str, architecture: str) -> bool:
        return bool(re.search(self.pattern, name.lower())) or bool(architecture and architecture == self.architecture)


_TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

# From the models' cards on the Hugging Face hub; the first that matches counts.
_REGISTRY = (
    _Family("nomic", r"nomic-embed-text", "search_query: ", "search_document: ", architecture="nomic_bert"),
    _Family(
        "embeddinggemma",
        r"embedding-?gemma",
        "task: search result | query: ",
        f"title: {TITLE} | text: ",
        architecture="gemma3_text",
    ),
    _Family("qwen3", r"qwen3-embedding", _TASK),
    _Family("gte-qwen", r"gte-qwen", f"{_TASK} "),
    _Family("gte", r"(^|/|-)gte-", ""),
    _Family("bge-en", r"bge-(small|base|large)-en", "Represent this sentence for searching relevant passages: "),
    _Family("bge-zh", r"bge-(small|base|large)-zh", "为这个句子生成表示以用于检索相关文章："),
    _Family("e5-instruct", r"e5-(mistral|large-instruct)|e5-.*-instruct", f"{_TASK} "),
    _Family("e5", r"(^|/|-)e5-(small|base|large)", "query: ", "passage: "),
)
