"""sentence-transformers without the libraries that it imports for training and evaluation.

With transformers it takes three functions from scikit-learn and SciPy when it is imported, none of which embedding or
reranking calls. They bring 900 modules, a third of all the time that the imports take. Here each becomes a function
that imports the real one when it is called.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

# by sentence_transformers.util.similarity, sentence_transformers.util.tensor, and the losses for object detection
UNUSED = {
    "sklearn.metrics": "pairwise_distances",
    "scipy.sparse": "coo_matrix",
    "scipy.optimize": "linear_sum_assignment",
}


def import_sentence_transformers() -> None:
    """Import it in this lean way, or as it is where that does not work. Raises ImportError where it is absent."""
    try:
        with _deferred(UNUSED):
            import_module("sentence_transformers")
    except Exception as error:  # a version that does more with what is deferred than to call it later
        log.debug("sentence-transformers is imported with all that it asks for", exc_info=error)
        import_module("sentence_transformers")


@contextmanager
def _deferred(functions: Mapping[str, str]) -> Iterator[None]:
    """Inside, these modules have stand-ins unless they are imported already; afterwards all find the real ones."""
    for name, function in functions.items():
        if name not in sys.modules:
            sys.modules[name] = _StandIn(name, function)
    try:
        yield
    finally:
        for name in functions:
            _step_aside(name)


class _StandIn(ModuleType):
    """A module of which one function exists, to be called later; whatever else is asked for, the real module gives."""

    def __init__(self, name: str, function: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        setattr(self, function, _later(name, function))

    def __getattr__(self, name: str) -> Any:
        # inspect and the import system ask every module for its __file__ and __path__: this one has none
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _later(module: str, function: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return getattr(_real(module), function)(*args, **options)

    return call


def _real(name: str) -> ModuleType:
    _step_aside(name)
    return import_module(name)


def _step_aside(name: str) -> None:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
