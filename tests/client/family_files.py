"""Files of the families of QMD's clients for tests, and the judgement on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmd_remote.client import families
from qmd_remote.client.config_check import Checked, Facts
from qmd_remote.client.config_values import Finding
from qmd_remote.client.families import DEFAULT, FAMILIES, Family
from qmd_remote.client.family_check import check_family, entries
from qmd_remote.client.family_edits import Endpoints, trees, written
from qmd_remote.client.remote_block import ModelNames

E, G = "http://box:8001", "http://box:8000"
MODELS = ModelNames(embed="a/embed", rerank="a/rerank", generate="a/generate")
SECRET = "hunter2"
JUDGED = [family for family in FAMILIES if family.file and family.name != DEFAULT]
EACH = pytest.mark.parametrize("family", JUDGED, ids=[family.name for family in JUDGED])
LLM = (
    "llm:\n  provider: openai-compatible\n  baseUrl: {}\n  apiKey: {}\n"
    "models:\n  embed: e\n  generate: g\n  rerank: r\n"
)


def name_of(family: Family) -> Path:
    """A file of the family's kind."""
    return Path(f"/somewhere/my file.{family.file}")


def judge(name: str, text: str, **facts) -> Checked:
    """The judgement of a text for a family, in a private file unless the test says otherwise."""
    family = families.find(name)
    found = entries(text, name_of(family).name, as_json=family.file == "json")
    return check_family(Facts(**{"path": name_of(family), "text": text, "mode": 0o600, **facts}), family, found)


def made(family: Family, embed: str = E, generation: str = G, key: str | None = None) -> str:
    """The file that is written for these servers."""
    there = Endpoints(embed_url=embed, generation_url=embed if family.one_url else generation, models=MODELS, key=key)
    return written(None, family, trees(family, there), name="f")


def problems(checked: Checked) -> list[Finding]:
    """What is more than a remark."""
    return [finding for finding in checked.findings if finding.severity != "info"]


def of(checked: Checked, code: str) -> Finding:
    """The only finding of this code, which has a fix."""
    found = [finding for finding in checked.findings if finding.code == code]
    assert 1 == len(found), checked.findings
    assert found[0].fix
    return found[0]
