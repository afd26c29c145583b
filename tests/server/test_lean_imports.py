"""sentence-transformers comes without what it imports for training, and works all the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qmd_remote.server import lean_imports
from tests.server import tiny_models as tiny

IMPORT = """
import json, sys
from qmd_remote.server import lean_imports
lean_imports.UNUSED = json.loads(sys.argv[1])
lean_imports.import_sentence_transformers()
"""
HEAVY = "heavy = sorted({name.partition('.')[0] for name in sys.modules} & {'scipy', 'sklearn'})\n"
EMBED = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[2], device="cpu", local_files_only=True)
width = model.encode(["a text"]).shape[1]
"""
CALL = """
import numpy as np
from sentence_transformers.util import similarity, tensor
distances = similarity.pairwise_distances(np.eye(2)).tolist()
import sklearn.metrics, scipy.optimize, scipy.sparse
same = similarity.pairwise_distances is not sklearn.metrics.pairwise_distances
matrix = isinstance(tensor.coo_matrix((2, 3)), scipy.sparse.coo_matrix)
"""


def run(script: str, tell: str, *words: str) -> list:
    """What an interpreter of its own makes of `tell` after the script."""
    code = f"{script}\nprint(json.dumps([{tell}]))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def unused() -> str:
    """The deferred functions, as an interpreter of its own is told of them."""
    return json.dumps(lean_imports.UNUSED)


def test_a_model_embeds_without_scikit_learn_and_scipy(tmp_path, unused):
    """Neither is imported to load a model and to embed with it."""
    folder = tiny.save_encoder(tmp_path / "tiny", "bert")
    assert [[], tiny.HIDDEN] == run(IMPORT + EMBED + HEAVY, "heavy, width", unused, str(folder))


def test_what_is_deferred_works_when_it_is_called(unused):
    """The real modules come with the first call, and everybody else finds the real ones."""
    told = run(IMPORT + HEAVY + CALL, "heavy, distances[0][0], same, matrix, sklearn.__name__", unused)
    assert [[], 0.0, True, True, "sklearn"] == told


def test_an_import_that_needs_more_gets_all_of_it():
    """Where a part of a deferred package is asked for at once, the import is made again without any tricks."""
    # the real scipy.optimize needs scipy.sparse.linalg, which no stand-in has
    told = run(IMPORT + HEAVY + CALL, "heavy, distances[0][0], matrix", json.dumps({"scipy.sparse": "coo_matrix"}))
    assert [["scipy", "sklearn"], 0.0, True] == told


def test_another_name_of_a_deferred_module_is_the_real_one():
    """A stand-in knows one function; for every other name it makes way for the real module."""
    script = (
        "import json, sys\nfrom qmd_remote.server.lean_imports import _deferred\n"
        "with _deferred({'fractions': 'Fraction', 'decimal': 'Decimal'}):\n"
        "    from fractions import Fraction\n    early = 'numbers' in sys.modules\n"
        "    from decimal import getcontext\n"
        "import decimal, fractions\n"
    )
    tell = "str(Fraction(1, 2)), Fraction is fractions.Fraction, getcontext is decimal.getcontext"
    assert ["1/2", False, True] == run(script, tell)
