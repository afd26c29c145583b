"""What a test needs and a machine may lack: the test is skipped, and says so; where it must run, that is a failure."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRED = "QMD_REMOTE_REQUIRE_DOCKER"  # set where the tests with a container engine must run


def missing(why: str) -> NoReturn:
    """End the test for this reason."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, and {why}")
    pytest.skip(why)
