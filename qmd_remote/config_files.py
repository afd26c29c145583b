"""Which files a command about a client's configuration means: by its rule, by --file, or an OpenClaw agent's."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qmd_remote import paths
from qmd_remote.client import families
from qmd_remote.client.families import Family
from qmd_remote.errors import ConfigError, UsageError

ALL = "all"


@dataclass(frozen=True)
class ConfigFile:
    """A file, and who chose it: "default", the variable that says where, "--file", or "agent NAME"."""

    path: Path
    chosen_by: str

    @property
    def by_rule(self) -> bool:
        """Whether the client's own rule chose it."""
        return self.chosen_by != "--file"

    @property
    def again(self) -> str:
        """The option that names the same file, for hints."""
        return f"--file {shlex.quote(str(self.path))}"


def find(
    client: str | None, *, file: Path | None = None, index: str = "index", agent: str | None = None
) -> list[ConfigFile]:
    """The files that are meant: one, or one for each agent with "all".

    Raises UsageError for options that exclude each other, ConfigError for an agent that is not there.
    """
    family = families.find(client) if client else None
    if agent is not None:
        return _of_agents(family, file, index, agent)
    if file is not None:
        return [ConfigFile(file, "--file")]
    if family and family.file == "json":
        if index != "index":
            hint = "leave --index out, or name the file with --file"
            raise UsageError(f"{family.name} has one file for all indexes", hint=hint)
        return [ConfigFile(paths.qmd_json_file(), "XDG_CACHE_HOME" if os.environ.get("XDG_CACHE_HOME") else "default")]
    rule = next((name for name in ("QMD_CONFIG_DIR", "XDG_CONFIG_HOME") if os.environ.get(name)), "default")
    return [ConfigFile(paths.qmd_config_file(index), rule)]


def one(found: Sequence[ConfigFile], command: str) -> ConfigFile:
    """The only file of several that may be meant. Raises UsageError."""
    if len(found) == 1:
        return found[0]
    raise UsageError(f"`{command}` is about one file", hint="name one agent with --openclaw-agent ID")


def _of_agents(family: Family | None, file: Path | None, index: str, agent: str) -> list[ConfigFile]:
    if file is not None:
        raise UsageError("--file and --openclaw-agent name different files", hint="leave one of them out")
    if family and family.file == "json":
        raise UsageError(
            f"{family.name} does not read an agent's index.yml", hint="name its file with --file, or another --client"
        )
    there = paths.openclaw_agents()
    wanted = there if agent == ALL else [agent]
    if not there or not set(wanted) <= set(there):
        folder = paths.openclaw_home() / "agents"
        raise ConfigError(
            f"{folder} has no agent of that name with a QMD of its own"
            if there
            else f"no agent of OpenClaw with a QMD of its own is in {folder}",
            hint=f"one of: {', '.join(there)}" if there else "name the file with --file",
            code="openclaw.no_agent",
        )
    return [ConfigFile(paths.openclaw_config_file(name, index), f"agent {name}") for name in wanted]
