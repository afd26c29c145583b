"""Bringing the services down, and who may do that."""

from __future__ import annotations

from collections.abc import Sequence

from qmd_remote import logbook, paths, services
from qmd_remote.errors import ServiceFailed
from qmd_remote.launch import containers, status
from qmd_remote.launch.engine import STOP_GRACE_S, Found
from qmd_remote.services import EMBED, GENERATION, TITLES, Record

STOP_MARGIN_S = 30.0  # beyond the time that running requests get: for the supervisor and for what it supervises


def bring_down(names: Sequence[str] = (EMBED, GENERATION)) -> tuple[tuple[Record, ...], tuple[Found, ...]]:
    """Stop the services of these names; returns the records of those that ran, and containers left without a keeper.

    Raises ServiceFailed, when all else is done, for a container that its engine did not remove.
    """
    with services.exclusive():
        for name in names:
            if services.find(name) is None and status.why_it_failed(name):
                # `status` tells the cause of a failed start for as long as it is the last thing in the log
                logbook.Logbook(paths.log_file(name)).say("the failed start was cleared by `qmd-remote down`")
        stopped = tuple(record for name in names if (record := stop(name)) is not None)
        swept = containers.sweep(names)
        for record in stopped:
            if record.program == containers.DOCKER and not containers.are_gone(record.service):
                raise ServiceFailed(
                    f"the {TITLES[record.service]} is stopped, but not certainly its container: the container engine "
                    "does not answer, and may bring it back",
                    hint="start the engine (sudo systemctl start docker), then: qmd-remote down",
                    code="docker.down",
                )
        return stopped, swept


def stop(service: str) -> Record | None:
    """Stop a service if it runs, and forget it; returns its record."""
    record = services.find(service)
    if record is not None:
        limit = record.spec.get("shutdown_limit_s")
        grace = limit if isinstance(limit, int | float) else 30.0
        if record.program == containers.DOCKER:
            grace = max(grace, STOP_GRACE_S)
        services.stop(record, grace_s=grace + STOP_MARGIN_S)
    # also the record of a supervisor that was killed, and so could not remove it
    services.record_file(service).unlink(missing_ok=True)
    return record


def require_background(record: Record) -> None:
    """Refuse to replace a service behind the back of the `up --foreground` that it belongs to. Raises ServiceFailed."""
    owner = services.foreground_owner(record)
    if owner is not None:
        raise ServiceFailed(
            f"the {TITLES[record.service]} belongs to `qmd-remote up --foreground` (pid {owner})",
            hint="restart that one: with Ctrl-C and `qmd-remote up --foreground`, or through its service manager",
            code="foreground",
        )
