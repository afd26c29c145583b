"""`up --dry-run`: what `up` would do, and nothing done."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from qmd_remote import paths, up_flow, up_views, views_plan
from qmd_remote.launch import containers, docker_plan, hardware, plan
from qmd_remote.launch import up as launch_up
from qmd_remote.launch.container import docker_run
from qmd_remote.launch.plan import Plan
from qmd_remote.output import Output
from qmd_remote.services import TITLES
from qmd_remote.settings import Settings


def show(out: Output, wanted: Settings, why: str) -> int:
    """Show the plan: services, memory, `docker run` lines. Raises what `up` would raise for it."""
    up_flow.require_used(wanted)
    wanted = launch_up.absolute(wanted)
    planned = plan.make(wanted, hardware.probe(), paths.cache_dir(), held=up_flow.held(wanted))
    for line in up_views.plan_lines(wanted, planned, why):
        out.note(line)
    memory = planned.generation.memory
    if memory is not None:
        out.note("")
        out.show(views_plan.memory_bar(memory))
        out.show(views_plan.memory_table(memory))
        out.note(views_plan.memory_line(memory))
    for service, container in containers.planned(planned).items():
        out.note(f"\nthe same as this, for {TITLES[service]}:")
        out.raw(docker_run(container, containers.entrypoint(container)) + "\n")
        if container.secret_env:
            out.note(
                f"it takes secrets from the shell: export {' '.join(f'{name}=…' for name in container.secret_env)}"
            )
    if planned.generation.engine == "process":
        words = ("a free port" if word == plan.PORT else word for word in planned.generation.argv)
        out.note(f"\ngeneration runs: {shlex.join(words)}")
    data = as_data(planned)
    if memory is not None and memory.why_not:
        docker_plan.require_fit(wanted, memory)
    return out.finish(data)


def as_data(planned: Plan) -> dict[str, Any]:
    """The plan as the envelope's data; secrets by name only."""
    memory = planned.generation.memory
    return {
        "preset": planned.preset,
        "generation": {
            "engine": planned.generation.engine,
            "url": planned.generation.url,
            "model": planned.generation.model,
            "reason": planned.generation.reason,
        },
        "containers": {service: one.as_dict() for service, one in containers.planned(planned).items()},
        "memory": None if memory is None else asdict(memory),
    }
