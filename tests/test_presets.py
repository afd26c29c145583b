"""Presets are data: every value is a setting's, and every model is one that the catalogue describes."""

from __future__ import annotations

from qmd_remote.catalogue import CATALOGUE
from qmd_remote.presets import PRESETS
from qmd_remote.settings import Settings, declared, resolve

MODELS = ("embed_model", "rerank_model", "generation_model")


def test_the_presets_are_named_from_the_largest_machine_to_the_smallest():
    """spark, gpu, cpu and mini are there under their own names, each with a line for people."""
    assert ["spark", "gpu", "cpu", "mini"] == list(PRESETS)
    assert all(name == preset.name and preset.summary for name, preset in PRESETS.items())


def test_a_preset_sets_settings_and_names_all_three_models():
    """Each value belongs to a setting that exists, and none of the models is left to chance."""
    known = {field.name for field in declared()}
    for preset in PRESETS.values():
        assert set(preset.values) <= known
        assert set(MODELS) <= set(preset.values)
        assert preset.name == resolve({"preset": preset.name}, {}).preset


def test_every_model_of_a_preset_is_in_the_catalogue():
    """What a preset uses is described, and so are the models without any preset."""
    used = {preset.values[name] for preset in PRESETS.values() for name in MODELS}
    used |= {getattr(Settings(), name) for name in MODELS}
    assert used <= set(CATALOGUE)
