"""`qmd-remote logs`, between parsing and showing."""

from __future__ import annotations

from qmd_remote.errors import UsageError
from qmd_remote.launch import logs as launch_logs
from qmd_remote.logbook import unstamped
from qmd_remote.output import Output


def logs(out: Output, service: str | None, lines: int | None, since: str | None, *, follow: bool, stamps: bool) -> int:
    """Show the wanted end of the logs, and with `follow` what is added until Ctrl-C. In JSON lines have their times."""
    if follow and out.as_json:
        raise UsageError("--follow never ends, and --json answers once", hint="qmd-remote logs --json")
    wanted = launch_logs.part(lines, since)
    files = launch_logs.places(service) if follow else launch_logs.files(service)
    if out.as_json:
        return out.finish({"logs": {name: launch_logs.read(path, wanted) for name, path in files.items()}})
    known = {name for name, path in files.items() if path.is_file()}
    if not known:
        out.note("there is no log yet: waiting for one")
    for name, text in launch_logs.stream(files, wanted, follow=follow, stamps=stamps):
        known.add(name)
        _show(out, name if len(known) > 1 else "", text)
    return out.finish({})


def crashes(out: Output, service: str | None, lines: int | None, *, stamps: bool) -> int:
    """Show what the services said before their newest crashes; that there was none is no failure."""
    found = {name: launch_logs.last_words(path, lines) for name, path in launch_logs.crashes(service).items()}
    if out.as_json:
        return out.finish({"logs": found})
    if not found:
        out.note("no crash is on record")
    for name, texts in found.items():
        for text in texts:
            _show(out, name if len(found) > 1 else "", text if stamps else unstamped(text))
    return out.finish({})


def _show(out: Output, name: str, text: str) -> None:
    """A line; with a name only where there are lines of another log, too."""
    if name:
        out.labelled(name, text)
    else:
        out.raw(f"{text}\n")


def require_alone(service: str | None, *, since: str | None, follow: bool) -> None:
    """Raise UsageError for options that make no sense with --crash."""
    if since is not None or follow:
        raise UsageError(
            "--crash shows one crash as a whole: leave out --since and --follow",
            hint=" ".join(filter(None, ("qmd-remote logs --crash", service))),
        )
