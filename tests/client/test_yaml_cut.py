"""Taking the `remote:` block out: what goes, what stays, what is refused."""

from __future__ import annotations

import pytest

from qmd_remote.client.yaml_cut import cut
from qmd_remote.errors import ConfigError


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: 1\nremote:\n  url: x\nb: 2\n", "a: 1\nb: 2\n"),
        ("# above\nremote:\n  url: x\n# below\nb: 2\n", "# above\n# below\nb: 2\n"),
        ("a: 1\nremote: # x\n  # in\n  url: x # y\n  # end\n\nb: 2\n", "a: 1\n\nb: 2\n"),
        ("a: |\n  text\nremote:\n  url: x\n  # not text of a\nb: 2\n", "a: |\n  text\nb: 2\n"),
        ("a: |+\n  text\n\nremote:\n  url: x\n\nb: 2\n", "a: |+\n  text\n\nb: 2\n"),
        ("remote:\n  x: |+\n    kept\n\nb: 2\n", "\nb: 2\n"),
        ("a: 1\r\nremote:\r\n  url: x\r\n", "a: 1\r\n"),
        ("a: 1\nremote:\n  url: x", "a: 1\n"),
        ("  a: 1\n  remote:\n    url: x\n    # mine\n  # theirs\n  b: 2\n", "  a: 1\n  # theirs\n  b: 2\n"),
        ("a: 1\nremote:\n", "a: 1\n"),
        ("a: 1\nremote: ~ # c\n  # d\nb: 2\n", "a: 1\nb: 2\n"),
        ("remote:\n  url: x\n", ""),
        ("\ufeff# c\na: 1\nremote:\n  url: x\n...\n# end", "\ufeff# c\na: 1\n...\n# end"),
        ("--- # top\nremote:\n  url: x\n", "--- # top\n"),
        ("a: 1\n'remote' :\n  url: x\n", "a: 1\n"),
        ("a: 1\n", "a: 1\n"),
        ("", ""),
    ],
)
def test_only_the_block_goes(before: str, after: str):
    """The block's lines and the comments in it go; comments above, blank lines and all else stay."""
    assert after == cut(before)
    assert after == cut(after)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("remote: {url: x}\n", "braces"),
        ("remote: &a\n  url: x\n", "anchor"),
        ("remote: [x]\n", "list"),
        ("remote:\n  url: x\n---\n", "document"),
        ("remote:\n  url: x\nremote:\n  url: x\n", "second time"),
        ("remote:\n\turl: x\n", "tab"),
        ("{remote: {url: x}}\n", "braces"),
    ],
)
def test_what_write_refuses_is_refused(text: str, words: str):
    """The refusal names the line."""
    with pytest.raises(ConfigError, match=rf"line \d.*{words}"):
        cut(text)
