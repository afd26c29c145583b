"""The models that are recommended, and those of the preset `mini`, as data. Any other model works by id or folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from qmd_remote import presets

Role = Literal["embed", "rerank", "generation"]
ROLES: tuple[Role, ...] = ("embed", "rerank", "generation")


@dataclass(frozen=True, kw_only=True)
class Model:
    """What one wants to know before choosing a model.

    `tokens` is the longest input, `parameters` a count, `size_mb` roughly what is fetched (10⁶ bytes; a bundled model:
    its package), `dimension` that of an embedder's vectors. A prompt is what the model wants before a text.
    """

    id: str
    role: Role
    tokens: int
    parameters: int
    size_mb: int
    licence: str
    use: str
    dimension: int | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    recommended: bool = True

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets that use it, for whatever role."""
        return tuple(name for name, preset in presets.PRESETS.items() if self.id in preset.values.values())


CATALOGUE: Mapping[str, Model] = MappingProxyType(
    {
        model.id: model
        for model in (
            Model(
                id=presets.DESIGN_EMBED,
                role="embed",
                dimension=768,
                tokens=8192,
                parameters=137_000_000,
                size_mb=550,
                licence="Apache-2.0",
                query_prompt="search_query: ",
                document_prompt="search_document: ",
                use="English notes and documents, long ones too; the usual choice",
            ),
            Model(
                id="BAAI/bge-m3",
                role="embed",
                dimension=1024,
                tokens=8192,
                parameters=568_000_000,
                size_mb=2290,
                licence="MIT",
                use="many languages, also mixed ones; several times the work of the usual choice",
            ),
            Model(
                id=presets.MINI_EMBED,
                role="embed",
                dimension=384,
                tokens=256,
                parameters=22_700_000,
                size_mb=87,
                licence="Apache-2.0",
                use="trying the tool; reads the first 256 tokens of a text only",
                recommended=False,
            ),
            Model(
                id=presets.DESIGN_RERANK,
                role="rerank",
                tokens=8192,
                parameters=568_000_000,
                size_mb=2290,
                licence="Apache-2.0",
                use="many languages, long documents; the usual choice",
            ),
            Model(
                id="cross-encoder/ms-marco-MiniLM-L6-v2",
                role="rerank",
                tokens=512,
                parameters=22_700_000,
                size_mb=92,
                licence="Apache-2.0",
                use="English, short passages, quick without a GPU",
            ),
            Model(
                id=presets.DESIGN_GENERATION,
                role="generation",
                tokens=32768,
                parameters=3_090_000_000,
                size_mb=6180,
                licence="Qwen Research (non-commercial)",
                use="query expansion on a GPU; the usual choice",
            ),
            Model(
                id=presets.SMALL_GENERATION,
                role="generation",
                tokens=32768,
                parameters=490_000_000,
                size_mb=1000,
                licence="Apache-2.0",
                use="query expansion without a GPU, or where the licence has to allow commercial use",
            ),
            Model(
                id=presets.MINI_GENERATION,
                role="generation",
                tokens=8192,
                parameters=135_000_000,
                size_mb=98,
                licence="Apache-2.0",
                use="trying the tool; its expansions are poor",
                recommended=False,
            ),
        )
    }
)
