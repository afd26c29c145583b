"""The catalogue of models: complete, consistent, and what docs/models.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qmd_remote.catalogue import CATALOGUE, ROLES, Model
from qmd_remote.presets import MINI_EMBED, MINI_GENERATION, PRESETS
from qmd_remote.views_models import count, megabytes

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def test_six_models_are_recommended_two_for_each_role():
    """The design recommends two embedders, two rerankers and two generators; the rest is what `mini` uses."""
    recommended = [model.role for model in CATALOGUE.values() if model.recommended]
    assert [2, 2, 2] == [recommended.count(role) for role in ROLES]
    assert {MINI_EMBED, MINI_GENERATION} == {model.id for model in CATALOGUE.values() if not model.recommended}


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=lambda model: model.id)
def test_every_model_is_described_in_full(model: Model):
    """Sizes, lengths, licence and use are there; only embedders have a dimension and prompts."""
    assert model is CATALOGUE[model.id]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.id)
    assert min(model.tokens, model.parameters, model.size_mb) > 0
    assert model.licence
    assert model.use
    assert (model.role == "embed") is (model.dimension is not None)
    assert model.role == "embed" or not (model.query_prompt or model.document_prompt)
    # two bytes a parameter, or four; the bundled language model is quantised
    assert model.id == MINI_GENERATION or 1.9 < model.size_mb * 1e6 / model.parameters < 4.2


def test_the_licence_that_forbids_commerce_is_told():
    """The usual generation model may not be used commercially, and its entry says so."""
    assert "non-commercial" in CATALOGUE["Qwen/Qwen2.5-3B-Instruct"].licence


def test_the_presets_of_a_model_are_derived():
    """Which presets use a model follows from the presets."""
    for model in CATALOGUE.values():
        assert {name for name, preset in PRESETS.items() if model.id in preset.values.values()} == set(model.presets)
    assert ("mini",) == CATALOGUE[MINI_EMBED].presets


def test_the_page_says_what_the_catalogue_says():
    """The table in docs/models.md, between its marks, is the catalogue's."""
    found = re.search(r"<!-- catalogue -->\n(.*?)\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert table() == found[1]


def table() -> str:
    """The catalogue as the page shows it."""
    rows = ["| model | for | dimension | tokens | parameters | size | licence | prompts | presets |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for model in CATALOGUE.values():
        prompts = [f"`{prompt}`" for prompt in (model.query_prompt, model.document_prompt) if prompt]
        cells = [
            f"`{model.id}`",
            model.role,
            str(model.dimension or "–"),
            str(model.tokens),
            count(model.parameters),
            f"~{megabytes(model.size_mb)}",
            model.licence,
            ", ".join(prompts) or "–",
            ", ".join(f"`{name}`" for name in model.presets) or "–",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
