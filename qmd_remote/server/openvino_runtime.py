"""OpenVINO, imported so that it reports to nobody."""

from __future__ import annotations

import sys
from typing import Any


def runtime() -> Any:
    """The `openvino` package. Raises ImportError where it is not installed.

    It announces its import, and each conversion, to its makers. Without the package that sends this it uses a class of
    its own that does nothing. So that package must not be found.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: "there is no such module"
    import openvino

    return openvino
