"""Pairs for rerankers that are language models: a chat template around query and document, kept whole.

The template is rendered once, with marks for the two texts; what stands around them is the same for every pair. When
a pair is too long, tokens of the document go, and neither the template's tail, where the answer is read, nor the query.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qmd_remote.server.fast_tokens import Pair, bare, bare_with_offsets, share
from qmd_remote.server.model import Prepared
from qmd_remote.server.tokenizing import row

if TYPE_CHECKING:
    from sentence_transformers.base.model import BaseModel
    from tokenizers import Tokenizer

Render = Callable[[str, str], str]

MARKS = ("qmdremotequerymark", "qmdremotedocumentmark")
# what a template may change of a text: blanks around it, quotes and brackets in it, nothing at all
SAMPLES = (("fox", "cat"), ("  a\n", "\n b  "), ("<&'\"{{ x }}", "é\\n\t%"), ("", ""))

QWEN3_RERANKER = re.compile(r"qwen3[-_]reranker", re.IGNORECASE)
# as its authors publish it in words; a system message is the instruction
QWEN3_RERANKER_TEMPLATE = r"""
{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") | first
    | default("Given a web search query, retrieve relevant passages that answer the query") -%}
{{- '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct' -}}
{{- ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n' -}}
{{- '<Instruct>: ' ~ instruction -}}
{{- '\n<Query>: ' ~ (messages | selectattr("role", "eq", "query") | map(attribute="content") | first) -}}
{{- '\n<Document>: ' ~ (messages | selectattr("role", "eq", "document") | map(attribute="content") | first) -}}
{{- '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n' -}}
"""


@dataclass(frozen=True)
class Parts:
    """A template's text before, between and behind the texts of a pair, of which the query comes first."""

    before: str
    between: str
    after: str

    def around(self, query: str, document: str) -> str:
        """The template with these texts."""
        return f"{self.before}{query}{self.between}{document}{self.after}"


class ChatPairs:
    """Queries with documents inside `parts`. `limit` is the longest row; `names` are the features of a row.

    Raises ValueError where the template itself has no room.
    """

    def __init__(self, tokenizer: Any, parts: Parts, names: Sequence[str], limit: int) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._parts = parts
        self._names = names
        self._limit = limit
        if len(bare(self._backend, [parts.around("", "")])[0]) >= limit:
            raise ValueError("the chat template alone is longer than the model's length")

    def __call__(self, items: Sequence[Pair]) -> list[Prepared]:
        """As `Tokens`."""
        encodings = bare(self._backend, [self._parts.around(*pair) for pair in items])
        return [self._prepared(pair, encoding.ids) for pair, encoding in zip(items, encodings, strict=True)]

    def _prepared(self, pair: Pair, ids: Sequence[int]) -> Prepared:
        truncated = len(ids) > self._limit
        found = np.array(self._shortened(pair) if truncated else ids, dtype=np.int64)
        return Prepared(row(self._names, found), len(found), truncated)

    def _shortened(self, pair: Pair) -> list[int]:
        encoding = bare_with_offsets(self._backend, self._parts.around(*pair))
        ids, offsets = encoding.ids, np.array(encoding.offsets, dtype=np.int64)
        begin = len(self._parts.before)
        query = _inside(offsets, begin, begin + len(pair[0]))
        begin += len(pair[0]) + len(self._parts.between)
        document = _inside(offsets, begin, begin + len(pair[1]))
        room = self._limit - (len(ids) - len(query) - len(document))
        first, second = share(len(query), len(document), room)
        return [
            *ids[: query.start + first],
            *ids[query.stop : document.start + second],
            *ids[document.stop :],
        ]


def parts_of(render: Render) -> Parts:
    """What `render` puts around query and document. Raises ValueError if it changes, repeats or swaps them."""
    before, _, rest = render(*MARKS).partition(MARKS[0])
    between, _, after = rest.partition(MARKS[1])
    parts = Parts(before, between, after)
    if any(parts.around(*pair) != render(*pair) for pair in (MARKS, *SAMPLES)):
        raise ValueError("the chat template does more than put texts in their places")
    return parts


def has_template(network: BaseModel) -> bool:
    """Whether sentence-transformers puts `network`'s inputs into a chat template."""
    return "message" in getattr(next(iter(network.children())), "modality_config", ())


def supply_template(network: BaseModel) -> None:
    """Give a Qwen3-Reranker as first published, whose own template is that of a chat, the one it was trained with."""
    transformer: Any = next(iter(network.children()))
    name = str(getattr(getattr(transformer, "config", None), "_name_or_path", ""))
    if not QWEN3_RERANKER.search(name) or not has_template(network):
        return
    if transformer.input_formatter.pair_roles_failure() is not None:
        transformer.tokenizer.chat_template = QWEN3_RERANKER_TEMPLATE
        transformer.input_formatter.message_format = "flat"


def rendering(network: BaseModel, prompt: str | None) -> Render:
    """How sentence-transformers puts a pair into `network`'s chat template.

    Raises AttributeError where the library's parts are not those that are known.
    """
    transformer: Any = next(iter(network.children()))
    options = {**transformer.processing_kwargs.get("chat_template", {})}
    options.pop("restore_suffix", None)  # a matter of cutting, which is ours
    formatter = transformer.input_formatter

    def render(query: str, document: str) -> str:
        messages = [formatter.pair_to_messages((query, document))]
        if prompt:
            messages = formatter.prepend_prompt_to_messages(messages, prompt)
        text: str = transformer.tokenizer.apply_chat_template(messages[0], tokenize=False, **options)
        return text

    return render


def _inside(offsets: Any, begin: int, end: int) -> range:
    """Which tokens lie in text[begin:end]: those that reach out of it belong to the template."""
    first = int(np.searchsorted(offsets[:, 0], begin, side="left"))
    return range(first, max(first, int(np.searchsorted(offsets[:, 1], end, side="right"))))
