"""`settings set`, `unset` and `edit`: the change of the file, and what it means here and now."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qmd_remote import atomic, editor, paths, services, setting_values, settings_edit, settings_file, views_settings
from qmd_remote.errors import ConfigError, QmdRemoteError
from qmd_remote.output import Output
from qmd_remote.settings import Settings, names, resolve
from qmd_remote.up_again import BARE, up_line

HEADER = "# Settings of qmd-remote, a line each: name = value. All of them: qmd-remote settings\n"
EDIT = "qmd-remote settings edit"

Effective = Callable[[], Settings]


def set_values(out: Output, words: list[str], effective: Effective) -> int:
    """Store values in the file, and tell what counts now. `effective` settles what `up` would use."""
    values = settings_edit.read_pairs(words)
    path = paths.settings_file()
    before = _settled(effective)
    changed = settings_edit.store(path, values)
    out.note(f"{path}: {', '.join(changed)} set" if changed else f"{path} says so already; nothing to write")
    for name, value in values.items():
        _warn_if_missing(out, name, value)
    return _finish(out, path, changed, tuple(values), before=before, effective=effective)


def unset(out: Output, unwanted: list[str], effective: Effective) -> int:
    """Take settings out of the file, and tell what counts now."""
    path = paths.settings_file()
    before = _settled(effective)
    gone = settings_edit.remove(path, unwanted)
    out.note(f"{path}: {', '.join(gone)} taken out" if gone else f"{path} does not set that; nothing to write")
    return _finish(out, path, gone, tuple(unwanted), before=before, effective=effective)


def edit(out: Output, effective: Effective) -> int:
    """Open the file in the user's editor and check what came of it; the file stays as the editor left it."""
    path = paths.settings_file()
    words = editor.command(path, EDIT)
    before, old = _settled(effective), settings_file.read_text(path)
    if old is None:
        paths.make_private(path.parent)
        atomic.replace(path, HEADER)  # made here, so that it is its owner's alone from the start
    try:
        editor.open_file(words, path, EDIT, keep_stdout=out.as_json)
    finally:
        if old is None and settings_file.read_text(path) == HEADER:
            path.unlink()
    try:
        new = settings_file.read(path, names())
        resolve({}, {}, file=new)
    except ConfigError as error:
        hint = f"the file is as you left it; to go on: {EDIT}"
        raise ConfigError(error.message, hint=hint, code=error.code) from None
    changed = _changed_names(old, new.values)
    out.note(f"{path}: {', '.join(changed)} changed" if changed else f"{path}: no setting changed")
    return _finish(out, path, changed, changed, before=before, effective=effective)


def _changed_names(old: str | None, new: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        before = settings_file.parse_toml(Path(), old or "")
    except ConfigError:
        before = {}
    return tuple(name for name in names() if before.get(name) != new.get(name))


def _settled(effective: Effective) -> Settings | None:
    """The settings before a change; None while something is wrong with them, which the change may be about."""
    try:
        return effective()
    except QmdRemoteError:
        return None


def _finish(
    out: Output,
    path: Path,
    changed: Collection[str],
    named: Collection[str],
    *,
    before: Settings | None,
    effective: Effective,
) -> int:
    """Tell what the settings are now, what else decides about them, and which service needs a restart for them."""
    data: dict[str, Any] = {"path": path, "changed": list(changed), "settings": [], "restart": []}
    try:
        after = effective()
        restart = _to_restart(before, after) if any(map(services.find, services.SERVICES)) else []
    except QmdRemoteError as error:
        out.warn(f"the settings cannot be used yet: {error.message}", hint=error.hint)
        return out.finish(data)
    shown = [row for row in views_settings.rows(after) if row.name in named]
    for row in shown:
        out.note(views_settings.line(row))
        if row.origin.startswith("environment"):
            out.warn(f"{row.environment} is set here, and wins over the file", hint=f"unset {row.environment}")
    if "api_key_file" in named and after.api_key_file and after.api_key:
        origin = after.origins["api_key"]
        way = "qmd-remote settings unset api_key" if origin.startswith("file") else "unset QMD_REMOTE_API_KEY"
        out.warn(f"the key itself is set as well, by {origin}, and wins over the file that holds one", hint=way)
    if restart:
        out.note(f"still running with other settings: {', '.join(restart)}; next: {_up_with(named)}")
    return out.finish({**data, "settings": [asdict(row) for row in shown], "restart": restart})


def _up_with(named: Collection[str]) -> str:
    """The `up` that gives what runs with the new values of these settings: the options that they had are left out."""
    command, words = BARE.split(), shlex.split(up_line())
    options = words[len(command) :]  # each with a value
    old = {setting_values.flag_of(name) for name in named}
    kept = [word for pair in zip(options[::2], options[1::2], strict=True) if pair[0] not in old for word in pair]
    return shlex.join([*command, *kept])


def _to_restart(before: Settings | None, after: Settings) -> list[str]:
    """The running services for which the change matters, and that do not run with what is settled now."""
    from qmd_remote.launch.up import absolute

    found = []
    for record in filter(None, map(services.find, services.SERVICES)):
        wanted = services.spec_of(record.service, absolute(after))
        is_new = before is None or services.spec_of(record.service, absolute(before)) != wanted
        if is_new and wanted != dict(record.spec):
            found.append(record.service)
    return found


def _warn_if_missing(out: Output, name: str, value: Any) -> None:
    if name in settings_edit.FILES and value and not Path(value).expanduser().exists():
        out.warn(f"{name}: there is no file {value} yet")
