"""The log of a failed start → cause, cure and exit code, on excerpts of real logs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd_remote.errors import Exit
from qmd_remote.launch import diagnose
from qmd_remote.launch.diagnoses import ENDS, OUT_OF_MEMORY, PART_KILLED, ROWS

Read = Callable[[str], str]

LOGS = Path(__file__).parent.parent / "logs"
DOCS = Path(__file__).parent.parent.parent / "docs" / "diagnosis.md"
TYPED = re.compile(r"qmd-remote \w+|sudo \w+|export \w+=|docker \w+|ss -ltnp|df -h|nvidia-smi")

FIVE = Exit.PREREQUISITE
FOUR = Exit.CONFIGURATION
ONE = Exit.FAILED

# excerpt → code, exit code, what the cause mentions, what the cure mentions
CAUSES: dict[str, tuple[str, Exit, str, str]] = {
    "container_exec_format": ("image.arch", FOUR, "processor", "--generation-image"),
    "convert_disk_full": ("disk.full", FIVE, "disk", "df -h"),
    "docker_bind": ("bind.address", FOUR, "address", "--generation-host"),
    "docker_cdi": ("gpu.toolkit", FIVE, "Toolkit", "sudo nvidia-ctk runtime configure"),
    "docker_client_new": ("docker.old", FIVE, "too old", "Docker Engine"),
    "docker_credential_helper": ("image.auth", FIVE, "helper", "credsStore"),
    "docker_disk_full": ("disk.full", FIVE, "images", "docker system df"),
    "docker_down": ("docker.down", FIVE, "no container engine", "sudo systemctl start docker"),
    "docker_gpu_driver_old": ("gpu.driver_old", FIVE, "it needs CUDA 13.0", "--generation-image"),
    "docker_gpu_library": ("gpu.library", FIVE, "driver", "nvidia-smi"),
    "docker_gpus": ("gpu.toolkit", FIVE, "Toolkit", "sudo nvidia-ctk runtime configure"),
    "docker_image_arch": ("image.arch", FOUR, "processor", "--generation-image"),
    "docker_image_arch_containerd": ("image.arch", FOUR, "processor", "--generation-image"),
    "docker_image_auth": ("image.auth", FIVE, "login", "docker login"),
    "docker_image_auth_containerd": ("image.auth", FIVE, "login", "docker login"),
    "docker_image_missing": ("image.missing", FOUR, "no such image", "--generation-image"),
    "docker_image_missing_containerd": ("image.missing", FOUR, "no such image", "--generation-image"),
    "docker_image_rate": ("image.rate", FIVE, "no more pulls", "docker login"),
    "docker_mount": ("mount.missing", FOUR, "folder", "HF_HOME"),
    "docker_name": ("name.taken", FIVE, "name", "docker rename"),
    "docker_permission": ("docker.permission", FIVE, "user", "sudo usermod -aG docker"),
    "docker_port": ("port.taken", FIVE, "port", "--generation-port"),
    "docker_port_allocated": ("port.taken", FIVE, "port", "--generation-port"),
    "docker_program": ("program.missing", FOUR, "program", "--generation-image"),
    "docker_registry_503": ("registry.unreachable", FIVE, "registry", "qmd-remote up"),
    "docker_registry_down": ("registry.unreachable", FIVE, "registry", "qmd-remote up"),
    "docker_registry_timeout": ("registry.unreachable", FIVE, "registry", "qmd-remote up"),
    "docker_registry_unreachable": ("registry.unreachable", FIVE, "registry", "qmd-remote up"),
    "docker_runtime": ("gpu.toolkit", FIVE, "Toolkit", "sudo nvidia-ctk runtime configure"),
    "serve_no_folder": ("model.missing", FOUR, "no-such-folder", "name an existing folder"),
    "serve_no_hub": ("hub.unreachable", FIVE, "nosuch/model", "--preset mini"),
    "torch_no_memory": ("memory.system", FIVE, "memory", "free -h"),
    "transformers_custom_code": ("model.remote_code", FOUR, "code", "--generation-model"),
    "transformers_gated": ("model.gated", FOUR, "gated", "https://huggingface.co/acme/gated, then: export HF_TOKEN"),
    "transformers_missing": ("model.missing", FOUR, "acme/missing", "--generation-model"),
    "transformers_no_folder": ("model.missing", FOUR, "no such model", "--generation-model"),
    "transformers_no_hub": ("hub.unreachable", FIVE, "does not answer", "qmd-remote pull"),
    "transformers_offline": ("hub.unreachable", FIVE, "does not answer", "qmd-remote pull"),
    "transformers_port_taken": ("port.taken", FIVE, "port", "ss -ltnp 'sport = :18434'"),
    "vllm_context_too_long": ("context.too_long", FOUR, "65536", "qmd-remote up --generation-context 2048"),
    "vllm_core_crashed": ("crash.sigsegv", ONE, "memory that is not its own", "qmd-remote up"),
    "vllm_core_killed": ("killed", ONE, "a process of the engine was killed", "free -h"),
    "vllm_core_killed_serving": ("killed", ONE, "a process of the engine was killed", "free -h"),
    "vllm_custom_code": ("model.remote_code", FOUR, "code", "--generation-model"),
    "vllm_driver_old": ("gpu.driver_old", FIVE, "driver", "--generation-image"),
    "vllm_gpu_arch": ("gpu.arch", FOUR, "other GPUs", "--generation-image"),
    "vllm_hub_busy": ("hub.busy", FIVE, "429", "export HF_TOKEN"),
    "vllm_hub_gated": ("model.gated", FOUR, "gated", "https://huggingface.co/acme/gated, then: export HF_TOKEN"),
    "vllm_hub_missing": ("model.missing", FOUR, "acme/missing", "--generation-model"),
    "vllm_hub_token": ("hub.token", FOUR, "token", "export HF_TOKEN"),
    "vllm_illegal_instruction": ("crash.sigill", FOUR, "instruction", "--dtype float32"),
    "vllm_memory_context": ("memory.context", FOUR, "2048 tokens", "qmd-remote up --generation-context 384"),
    "vllm_memory_context_gpu": ("memory.context", FOUR, "8192 tokens want 1.12 GiB", "--generation-context 3856"),
    "vllm_memory_kv": ("memory.kv", FIVE, "nothing", "qmd-remote up --generation-gpu-share 0.5"),
    "vllm_memory_kv_cpu": ("memory.kv", FIVE, "it wants 100.0 GiB, and 13.55 of 15.46", "free -h"),
    "vllm_memory_kv_none_left": ("memory.kv", FIVE, "nothing", "--generation-gpu-share 0.5"),
    "vllm_memory_start": ("memory.start", FIVE, "125.83 GiB, and 10.12 of 139.81", "--generation-gpu-share 0.06"),
    "vllm_no_gpu": ("gpu.missing", FIVE, "no GPU", "--gpus none"),
    "vllm_offline": ("hub.unreachable", FIVE, "does not answer", "qmd-remote pull"),
    "vllm_oom": ("memory.oom", FIVE, "1.16 GiB more, and 312.00 MiB of 7.79 GiB", "--generation-sequences 2"),
    "vllm_port_taken": ("port.taken", FIVE, "port", "ss -ltnp"),
    "vllm_ptx": ("gpu.driver_old", FIVE, "driver", "nvidia-smi"),
    "vllm_ptxas": ("gpu.arch", FOUR, "other GPUs", "--generation-image"),
    "vllm_shm": ("shm", FIVE, "it wants 160 MiB, and 64 MiB are free", "df -h /dev/shm"),
    "vllm_worker_killed": ("killed", ONE, "a process of the engine was killed", "free -h"),
    "vllm_unknown_architecture": ("model.unsupported", FOUR, "does not know", "--generation-model"),
    "vllm_unknown_option": ("args.unknown", FOUR, "--model-typo", "--generation-args"),
    "vllm_unknown_type": ("model.unsupported", FOUR, "does not know", "--generation-model"),
}

# the end of a container whose log does not tell
SILENT_ENDS: dict[str, tuple[str, Exit]] = {
    "container_killed": ("killed", ONE),
    "container_no_program": ("program.missing", FOUR),
    "container_oom_killed": ("memory.system", FIVE),
    "container_sigabrt": ("crash.sigabrt", ONE),
    "container_sigbus": ("shm", FIVE),
    "container_sigsegv": ("crash.sigsegv", ONE),
    "container_stopped": ("stopped", ONE),
}


def how_it_ended(name: str) -> tuple[int, bool]:
    """The exit code of an excerpt's container, and whether it was killed for its memory."""
    said = re.search(r"^# ended: exit code (\d+)(, OOMKilled)?$", (LOGS / f"{name}.log").read_text(), re.MULTILINE)
    assert said is not None
    return int(said[1]), bool(said[2])


@pytest.mark.parametrize("name", CAUSES)
def test_a_known_failure_has_its_code_cause_and_cure(name: str, excerpt: Read):
    """A start that failed for a known reason says which, with the figures of its log, and what to do about it."""
    code, exit_code, cause, fix = CAUSES[name]
    found = diagnose.diagnose(excerpt(name))
    assert found is not None
    assert (code, exit_code) == (found.code, found.exit_code)
    assert cause in found.cause
    assert fix in found.fix


@pytest.mark.parametrize("name", CAUSES)
def test_a_cause_ends_the_command_with_its_own_exit_code(name: str, excerpt: Read):
    """The same cause has the same exit code, whether our server told it or an engine's log: 4 settings, 5 machine."""
    error = diagnose.to_error("the engine", excerpt(name), "ended", "see the log")
    assert CAUSES[name][1] == error.exit_code
    assert error.message.startswith("the engine could not start: ")


@pytest.mark.parametrize("name", SILENT_ENDS)
def test_the_end_of_a_silent_container_is_told_by_its_exit_code(name: str, excerpt: Read):
    """Where a log has no cause, the exit code and the kernel's word about memory have."""
    found = diagnose.diagnose_end(excerpt(name), *how_it_ended(name))
    assert found is not None
    assert SILENT_ENDS[name] == (found.code, found.exit_code)


def test_an_end_by_itself_is_a_failure():
    """A container that nobody told to end has failed, whatever its exit code says."""
    found = diagnose.diagnose_end("INFO Shutting down\n", 0, oom_killed=False)
    assert found is not None
    assert ("ended", ONE) == (found.code, found.exit_code)


@pytest.mark.parametrize(("exit_code", "expected"), [(1, "shm"), (139, "shm")])
def test_a_log_knows_more_than_an_exit_code(exit_code: int, expected: str, excerpt: Read):
    """A program that tells its cause may crash on its way out."""
    found = diagnose.diagnose_end(excerpt("vllm_shm"), exit_code, oom_killed=False)
    assert found is not None
    assert expected == found.code


def test_who_was_killed_for_its_memory_has_no_last_words(excerpt: Read):
    """What the log tells then was survived."""
    found = diagnose.diagnose_end(excerpt("vllm_shm"), 137, oom_killed=True)
    assert found is not None
    assert "memory.system" == found.code


def test_an_end_that_says_nothing_has_no_diagnosis():
    """Exit code 1 and an empty log have no cause that could be told."""
    assert diagnose.diagnose_end("", 1, oom_killed=False) is None


def test_every_code_has_an_excerpt():
    """No row of the table is without a log that shows it; the engine's complaints are tried in their own tests too."""
    ours = {row.code for row in (*ROWS, *ENDS.values(), OUT_OF_MEMORY, PART_KILLED) if not row.of_engine}
    shown = {code for code, *_ in CAUSES.values()} | {code for code, _ in SILENT_ENDS.values()} | {"ended"}
    assert not ours - shown


def test_every_excerpt_says_where_it_comes_from():
    """Captured from a run, or written: nobody should have to guess; and there are enough of them."""
    firsts = {path: path.read_text().splitlines()[0] for path in LOGS.glob("*.log")}
    assert not [path for path, line in firsts.items() if not line.startswith(("# captured: ", "# written from "))]
    assert 20 <= len([line for line in firsts.values() if line.startswith("# captured: ")])
    assert not {path.stem for path in firsts} ^ {*CAUSES, *SILENT_ENDS, *NOT_KNOWN}


@pytest.mark.parametrize(
    "row", [row for row in (*ROWS, *ENDS.values(), OUT_OF_MEMORY, PART_KILLED) if not row.of_engine]
)
def test_every_cure_is_something_to_type(row):
    """No row leaves the user with a statement only."""
    assert TYPED.search(row.fix)


def test_the_page_has_every_row_and_no_other():
    """docs/diagnosis.md tells the codes, meanings and cures of the table."""
    expected = [
        f"| `{row.code}` | {row.cause} | {_typed(row.fix)} | {row.exit_code.value} |" for row in (*ROWS, PART_KILLED)
    ]
    ends = [
        f"| {code} | `{row.code}` | {row.cause} | {_typed(row.fix)} | {row.exit_code.value} |"
        for code, row in [*ENDS.items(), ("137, killed for its memory", OUT_OF_MEMORY)]
    ]
    page = [
        line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith(("| `", "| 1", "| 0", "| 2"))
    ]
    wanted = list(dict.fromkeys([*sorted(expected), *ends]))
    assert wanted == page, "the page should have:\n" + "\n".join(wanted)


def _typed(fix: str) -> str:
    """A cure in a table of Markdown."""
    return fix.replace("|", "\\|")


def envelope(**changes: object) -> str:
    """A failure as our own server prints it."""
    error = {"code": "model.missing", "message": "there is no model x", "hint": "name another"}
    members: dict[str, object] = {"schema": 1, "command": "serve", "ok": False, "exit_code": 4, "data": {}}
    return json.dumps({**members, "error": error, "warnings": [], **changes})


def test_our_own_envelope_wins_over_every_signature():
    """What our server says of itself is the cause, whatever else its log mentions."""
    log = f"CUDA out of memory\n{envelope()}\nAddress already in use\n"
    error = diagnose.to_error("embed server", log, "ended", "see the log")
    expected = ("model.missing", "embed server could not start: there is no model x", "name another", 4)
    assert expected == (error.code, error.message, error.hint, error.exit_code)


@pytest.mark.parametrize(
    "line",
    [
        '{"schema": 1',
        '{"schema": 1}',
        envelope(error=None),
        '{"schema": [',
        envelope(error={"code": "x"}),
        envelope(exit_code=99),
        envelope(exit_code=None),
    ],
)
def test_a_line_that_only_looks_like_an_envelope_is_no_cause(line: str):
    """A cut-off, successful or foreign envelope does not hide the cause that the log tells, nor does it fail."""
    error = diagnose.to_error("embed server", f"CUDA out of memory\n{line}\n", "ended", "see the log")
    assert "memory.oom" == error.code


ERROR = "(EngineCore pid=140) ERROR 11-22 10:00:00 [core.py:700] "
OOM = f"{ERROR}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB.\n"
ARGUMENTS = "(APIServer pid=1) INFO 11-22 10:00:00 [api_utils.py:286] non-default args: {'model': 'm'}\n"
WRAPPER = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"


def code_of(log: str) -> str:
    """The code of a log's diagnosis, or nothing."""
    found = diagnose.diagnose(log)
    return found.code if found else ""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (f"{OOM}{WRAPPER}", "memory.oom"),
        (f"{OOM}{ERROR}KeyError: 'q'\n{WRAPPER}", ""),
        (f"{OOM}INFO:     Application startup complete.\nbye\n", ""),
        (f"{OOM}{ARGUMENTS}bye\n", ""),
        (f"{ARGUMENTS}{OOM}{WRAPPER}", "memory.oom"),
        (f"{OOM}[W1123 init.cpp:2] destroy_process_group() was not called\nasyncio.CancelledError: x\n", "memory.oom"),
        (OOM.replace("ERROR", "WARNING"), ""),
        (OOM.replace("ERROR", "INFO"), ""),
        (f"\x1b[1;36m(EngineCore_DP0 pid=2)\x1b[0;0m {OOM.split(') ', 1)[1]}", "memory.oom"),
        (f"{OOM}Exception: WorkerProc initialization failed due to an exception.\n", "memory.oom"),
    ],
    ids=["known", "survived", "before ready", "of an earlier start", "of this start", "noise", "warning", "info",
         "coloured", "worker"],
)  # fmt: skip
def test_only_what_ended_this_start_is_its_cause(log: str, expected: str):
    """Wrappers and the noise of a shutdown are passed over; what was survived, or only a warning, is not blamed."""
    assert expected == code_of(log)


def test_an_error_in_the_words_of_a_library_is_followed_to_its_cause():
    """A traceback that goes on upwards ("the direct cause of") is read up to the cause that is known."""
    chained = (
        "Traceback (most recent call last):\n"
        "OSError: [Errno 28] No space left on device\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n"
        '  File "x.py", line 3, in load\n'
        "acme.LoadError: the weights cannot be written\n"
    )
    assert "disk.full" == code_of(chained)
    assert not code_of(chained.replace("The above exception was the direct cause of the following exception:", "next:"))


def test_a_free_share_is_not_offered_where_no_model_fits_into_it():
    """With less than 4 GiB free, ending others is the only cure; figures that are none do no harm."""
    line = (
        "ValueError: Free memory on device cuda:0 ({}/24.00 GiB) on startup is less than desired GPU memory utilization"
    )
    small, odd = diagnose.diagnose(line.format("1.50")), diagnose.diagnose(line.format("1.2.3"))
    assert small is not None
    assert odd is not None
    assert small.fix == odd.fix
    assert "--generation-gpu-share 0.3" in small.fix


def test_a_context_that_the_setting_refuses_is_not_offered():
    """Below its least value the usual cure is told."""
    line = "max seq len (512), (2.0 GiB KV cache is needed, the estimated maximum model length is {}. Try"
    least, less = diagnose.diagnose(line.format(256)), diagnose.diagnose(line.format(255))
    assert least is not None
    assert less is not None
    assert "--generation-context 256;" in least.fix
    assert "255" not in less.fix


def test_words_of_an_engine_are_not_sought_elsewhere():
    """ "connection refused" in a model server's log is no registry that does not answer."""
    assert not code_of("RuntimeError: dial tcp 10.0.0.1: connection refused\n")
    assert "registry.unreachable" == code_of("docker: Error response from daemon: dial tcp 10.0.0.1: i/o timeout.\n")


def test_a_warning_from_long_before_is_not_the_cause():
    """Retries that were survived (a hub out of reach, the model cached) do not explain what failed afterwards."""
    log = (
        "'[Errno -2] Name or service not known' thrown while requesting HEAD https://hub.example/m/config.json\n"
        "Retrying in 1s [Retry 1/5].\n"
        "Loading weights: 100%|\n"
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use\n"
    )
    assert "port.taken" == code_of(log)


def test_an_unknown_failure_after_survived_retries_shows_its_own_words():
    """Without a known signature at its end a log's last error is shown, not a retry from its beginning."""
    log = (
        "'[Errno -2] Name or service not known' thrown while requesting HEAD https://x\nRetrying in 1s\nKeyError: 'q'\n"
    )
    error = diagnose.to_error("the engine", log, "ended with exit code 1", "see the log")
    assert ("service.failed", "the engine ended with exit code 1: KeyError: 'q'", "see the log") == (
        error.code,
        error.message,
        error.hint,
    )


# excerpts without a diagnosis → their last error line, or the last line of a start that went well
NOT_KNOWN = {
    "convert_cut_file": "ValueError: cannot reshape array of size 1214336 into shape (49152,612)",
    "convert_done": "phase: saving",
    "transformers_empty_folder": "ValueError: Unrecognized processing class in /models/emptymodel.",
    "transformers_ready": "Finished server process",
    "vllm_ready": "Started server process",
    "vllm_ready_cpu": "Application startup complete.",
}


@pytest.mark.parametrize(("name", "expected"), NOT_KNOWN.items())
def test_an_unknown_failure_names_its_root(name: str, expected: str, excerpt: Read):
    """The line that is shown is the error itself, without its log prefix, and not the wrapper that vLLM ends with."""
    assert diagnose.diagnose(excerpt(name)) is None
    assert diagnose.last_error_line(excerpt(name)).startswith(expected)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ("\n \n", ""),
        ("starting\nKilled\n", "Killed"),
        ("RuntimeError: first\nTypeError: second\nbye\n", "TypeError: second"),
        ("(APIServer pid=1) ERROR 11-22 [x.py:1] torch.OutOfMemoryError: big\n", "OutOfMemoryError: big"),
        ("progress 1%\rprogress 2%\rOSError: gone\r", "OSError: gone"),
        (f"{ERROR}KeyError: 'q'\n{ERROR}EngineCore failed to start.\n{WRAPPER}", "KeyError: 'q'"),
        (f"{ERROR}EngineCore failed to start.\n(EngineCore pid=1) INFO 11-22 10:00:00 [x.py:1] bye\n{WRAPPER}",
         "EngineCore failed to start."),
        ("x.ValidationError: 1 validation error for ModelConfig\n  Value error, odd\n    For more see\n",
         "Value error, odd"),
        ("usage: vllm\nvllm serve: error: argument --port: invalid int value: 'x'\n",
         "vllm serve: error: argument --port: invalid int value: 'x'"),
        ("AssertionError\n", "AssertionError"),
        (f"ValueError: of an earlier start\n{ARGUMENTS}going on\n", "going on"),
        (WRAPPER, ""),
    ],
)  # fmt: skip
def test_the_last_error_line_is_found(log: str, expected: str):
    """The last line that names an error counts, else one at level ERROR, else the last line at all."""
    assert expected == diagnose.last_error_line(log)


LINES = st.sampled_from(
    [OOM, ARGUMENTS, WRAPPER, "Traceback (most recent call last):", "Failed core proc(s): {'E': -9}", '{"schema": ',
     "Free memory on device (", "max seq len (1), (", "During handling of the above exception", "{x} is gated {"]
)  # fmt: skip


@given(st.lists(st.one_of(LINES, st.text())).map("\n".join), st.integers(), st.booleans())
def test_any_log_ends_in_an_error_that_can_be_shown(log: str, exit_code: int, oom_killed: bool):
    """Whatever a log holds, the failure has words, a hint and an exit code, and its words have a bound."""
    error = diagnose.to_error("the engine", log, "ended", "see the log")
    assert error.message.startswith("the engine ")
    assert len(error.message) < 400
    assert error.hint
    assert error.exit_code in set(Exit)
    found = diagnose.diagnose_end(log, exit_code, oom_killed)
    assert found is None or (found.code and found.cause and found.fix)
