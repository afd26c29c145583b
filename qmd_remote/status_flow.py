"""What `status` does: look once, or keep looking."""

from __future__ import annotations

import time
from dataclasses import asdict

from qmd_remote import settings, views
from qmd_remote.errors import ConfigError, Exit, NotRunning, UsageError
from qmd_remote.launch import status
from qmd_remote.launch.status import ServiceStatus
from qmd_remote.output import Output
from qmd_remote.services import TITLES
from qmd_remote.up_again import up_line

PERIOD_S = 2.0
WELL = {"ready", "external", "off", "not running", "loading", "stopping"}


def once(out: Output) -> int:
    """Show what runs; the exit code tells how it is."""
    statuses = _look()
    data = {"services": [asdict(one) for one in statuses]}
    code = status.exit_code(statuses)
    if code == Exit.NOT_RUNNING:
        return out.fail(NotRunning("neither service is running", hint=up_line()), data)
    out.show(views.status_table(statuses))
    for one in statuses:
        if one.state not in WELL:
            out.warn(f"the {TITLES[one.service]} is {one.state}", hint=_cure(one))
    return out.finish(data, exit_code=code)


def watch(out: Output) -> int:
    """Keep showing what runs until Ctrl-C; on anything but a terminal the table is printed again when it changes."""
    if out.as_json:
        raise UsageError("--watch is for people", hint="ask again and again: qmd-remote status --json")
    try:
        with out.live() as show:
            while True:
                show(views.status_table(_look()))
                time.sleep(PERIOD_S)
    except KeyboardInterrupt:
        return out.finish({})


def _look() -> tuple[ServiceStatus, ...]:
    try:
        key = settings.resolve({}).key
    except ConfigError:  # what runs can be seen all the same, and its own record knows its key
        key = ""
    return status.look(key)


def _cure(one: ServiceStatus) -> str:
    if one.detail.startswith("the container engine"):
        return "qmd-remote doctor"
    if one.pid is None:
        return f"qmd-remote logs {one.service}, then: {up_line()}"
    return f"qmd-remote logs {one.service}; if it stays so: qmd-remote restart {one.service}"
