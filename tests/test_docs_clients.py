"""The page of each family of clients shows what `config write` writes for it."""

from pathlib import Path

import pytest

from qmd_remote.client import families, family_edits
from qmd_remote.client.families import DEFAULT, FAMILIES, Family
from qmd_remote.client.family_edits import Endpoints
from qmd_remote.client.remote_block import RemoteBlock
from qmd_remote.client.yaml_splice import splice
from qmd_remote.config_flow import DESIGN

PAGES = Path(__file__).resolve().parent.parent / "docs" / "clients"
BOX = "http://spark:8001"
KEY = "QMD_REMOTE_API_KEY"
SPARK = Endpoints(embed_url=BOX, generation_url=BOX, models=DESIGN, key_variable=KEY)


def written(family: Family) -> str:
    """The family's file, with the design's models."""
    if family.name == DEFAULT:
        return splice("", RemoteBlock(url=BOX, api_key=f"${{{KEY}}}", models=DESIGN))
    return family_edits.written("", family, family_edits.trees(family, SPARK), name="file")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_has_a_page_with_what_it_gets(family: Family):
    """Its file and its variables stand there as the program makes them, and every number of a pull request."""
    page = (PAGES / f"{family.name}.md").read_text(encoding="utf-8")
    for number in family.pull_requests:
        assert number.removeprefix("pr") in page
    if not family.served:
        return
    if family.file:
        assert f"```{family.file}\n{written(family)}```" in page
    if family.variables:
        lines = "\n".join(family_edits.shell_lines(family, SPARK))
        assert f"```text\n{lines}\n```" in page


def test_the_list_names_each_family():
    """Names, aliases and links of the table lead to the families."""
    page = (PAGES / "README.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert f"[{family.name}]({family.name}.md)" in page
        for alias in family.aliases:
            assert families.find(alias) is family
            assert alias in page or alias == "remote"


def test_no_page_is_of_nobody():
    """Each page belongs to a family that there is."""
    assert {path.stem for path in PAGES.glob("*.md")} == {"README", *(family.name for family in FAMILIES)}
