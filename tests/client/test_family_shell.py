"""The lines for a shell that set each family's variables."""

from __future__ import annotations

import os
import subprocess

import pytest

from qmd_remote.client import families
from qmd_remote.client.families import FAMILIES, Family
from qmd_remote.client.family_edits import Endpoints, shell_lines, unserved
from qmd_remote.client.remote_block import ModelNames
from qmd_remote.errors import ConfigError, UsageError

E, G = "http://box:8001", "http://box:8000"
TWO = Endpoints(embed_url=E, generation_url=G, key="sk-1")
WITH_VARIABLES = [family for family in FAMILIES if family.variables and family.served]


@pytest.mark.parametrize("family", WITH_VARIABLES, ids=[family.name for family in WITH_VARIABLES])
def test_a_shell_gets_the_values_as_they_are(family: Family):
    """Whatever they hold; the key comes out of its variable, and stands in no line."""
    odd = ModelNames(embed='it\'s $(id) `id` "x"', rerank="a b;c", generate="$HOME\\n*")
    other = E if family.one_url else G
    there = Endpoints(embed_url=E, generation_url=other, models=odd, key="sk-literal", key_variable="BOX_KEY")
    lines = shell_lines(family, there)
    assert "sk-" not in "".join(lines)
    env = {"BOX_KEY": "sk 'from' $env", "PATH": os.environ["PATH"]}
    script = "\n".join([*lines, "exec env -0"])
    shown = subprocess.run(["sh", "-euc", script], env=env, capture_output=True, check=True, text=True).stdout
    found = dict(entry.split("=", 1) for entry in shown.split("\0") if entry)
    parts = {
        "{embed_url}": E + family.base_path,
        "{generation_url}": other + family.base_path,
        "{embed}": odd.embed,
        "{rerank}": odd.rerank,
        "{generate}": odd.generate,
        "{key}": env["BOX_KEY"],
    }
    wanted = {name: parts.get(template, template) for name, template in family.variables}
    assert wanted == {name: value for name, value in found.items() if name.startswith("QMD_")}


def test_lines_are_as_people_write_them():
    """Quotes only where they are needed; what is not known has no line."""
    lines = shell_lines(families.find("remote-urls"), Endpoints(embed_url=E, generation_url=G, key="sk-1"))
    assert [
        f"export QMD_REMOTE_EMBED_URL={E}",
        f"export QMD_REMOTE_RERANK_URL={E}",
        f"export QMD_REMOTE_GEN_URL={G}",
    ] == lines
    keyed = Endpoints(embed_url=E, generation_url=G, key_variable="BOX_KEY")
    assert 'export QMD_REMOTE_API_KEY="${BOX_KEY}"' == shell_lines(families.find("remote-urls"), keyed)[-1]


def test_a_variable_with_a_name_that_is_none_is_refused():
    """A line for `eval` holds nothing that a shell would run."""
    bad = Endpoints(embed_url=E, generation_url=G, key_variable="X}$(id)")
    with pytest.raises(UsageError) as caught:
        shell_lines(families.find("remote-urls"), bad)
    assert "$(id)" not in caught.value.message


def test_a_family_without_variables_is_sent_to_its_file():
    """The hint is the command that writes it."""
    with pytest.raises(UsageError, match="no variables") as caught:
        shell_lines(families.find("olyashok"), TWO)
    assert "qmd-remote config write --client olyashok" == caught.value.hint


def test_one_server_cannot_be_two():
    """The client whose every URL is for Ollama's API is not sent to an engine that does not speak it."""
    ollama = families.find("ollama")
    with pytest.raises(UsageError) as caught:
        shell_lines(ollama, TWO)
    assert "--url" in caught.value.hint
    assert [f"export QMD_{name}_URL={E}" for name in ("OLLAMA_EMBED", "RERANK", "EXPAND")] == shell_lines(
        ollama, Endpoints(embed_url=E, generation_url=E)
    )


def test_what_is_not_served_is_refused():
    """The error says what the family speaks, and what to use instead."""
    family = families.find("own-protocol")
    with pytest.raises(ConfigError) as caught:
        shell_lines(family, TWO)
    for error in (caught.value, unserved(family)):
        assert ("client.not_served", True) == (error.code, "/embed" in error.message)
        assert "--client" in error.hint


def test_endpoints_do_not_show_their_key():
    """Not in a traceback either."""
    assert "sk-1" not in repr(TWO)
