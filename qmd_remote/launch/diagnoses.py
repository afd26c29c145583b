"""Known failures, as data: what a log says → its code, cause, cure and exit code. `diagnose.py` searches.

The codes are those of `errors.py` and of the embed server, so that a cause has one name wherever it shows. Where the
launcher's facts call a row otherwise: hf.gated is model.gated, and hub.token when a token is refused; hf.missing is
model.missing; hf.remote_code is model.remote_code; hf.rate is hub.busy; hf.offline is hub.unreachable; exit 137 with
OOMKilled is memory.system, since memory.oom is the GPU's. The rows gpu.toolkit, gpu.library, image.*, name.taken and
more are complaints of the container engine: `docker_errors.py` has them, and they are taken from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qmd_remote.errors import Exit
from qmd_remote.launch.docker_errors import COMPLAINTS

Figures = Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """One known failure.

    `pattern` may name groups: `figures` is added to the cause when the line has all that it asks for, and `exact`
    makes a better cure of them; "", KeyError or ValueError when it cannot. A row `of_engine` counts in what a container
    engine says only: its words are too common elsewhere. A `vague` one gives way to what it came from, where the log
    tells that.
    """

    code: str
    cause: str
    fix: str
    pattern: str = ""
    exit_code: Exit = Exit.PREREQUISITE
    figures: str = ""
    exact: Callable[[Figures], str] | None = None
    of_engine: bool = False
    vague: bool = False


LEAST_SHARE_GIB = 4.0  # below it no model of the catalogue would start
LEAST_CONTEXT = 256  # as the setting says

LESS = "qmd-remote up --generation-sequences 2 --generation-context 4096"
SMALLER = "qmd-remote up --generation-model Qwen/Qwen2.5-0.5B-Instruct"
ROOM_ON_GPU = "end what else uses the GPU (nvidia-smi shows it)"
OTHER_IMAGE = "qmd-remote up --generation-image nvcr.io/nvidia/vllm:TAG"
NO_GPU = (
    "qmd-remote up --preset cpu; or a CPU image: qmd-remote up --generation docker --gpus none --generation-image IMAGE"
)


def _share_of_what_is_free(figures: Figures) -> str:
    free, total = float(figures["free"]), float(figures["total"])
    if free < LEAST_SHARE_GIB or total <= 0:
        return ""
    share = min(int(100 * (free - 1) / total), 90)
    return f"{ROOM_ON_GPU}; or give vLLM less: qmd-remote up --generation-gpu-share 0.{max(share, 1):02d}"


def _context_that_fits(figures: Figures) -> str:
    length = int(figures["fits"])
    if length < LEAST_CONTEXT:
        return ""
    return f"qmd-remote up --generation-context {length}; or give vLLM more of the GPU: --generation-gpu-share 0.5"


def _context_of_model(figures: Figures) -> str:
    return f"qmd-remote up --generation-context {figures['most']}"


def _holder_of_port(figures: Figures) -> str:
    return (
        f"see who has it: ss -ltnp 'sport = :{figures['port']}'; then: qmd-remote up, or with another port: qmd-remote "
        "up --generation-port PORT"
    )


def _licence_of_model(figures: Figures) -> str:
    model = figures.get("model") or figures["path"]
    return f"accept its licence at https://huggingface.co/{model}, then: export HF_TOKEN=…, and: qmd-remote up"


MEMORY = (
    Row(
        "memory.start",
        "the GPU has too little free memory for the share that vLLM is given",
        f"{ROOM_ON_GPU}; or give vLLM less: qmd-remote up --generation-gpu-share 0.3",
        r"Free memory on device.*?(?:\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\).*?)?is less than (?:desired GPU memory "
        r"utilization|the engine's budget)(?:.*?\([\d.]+, (?P<wanted>[\d.]+) GiB\))?|"
        r"less than desired GPU memory utilization",
        figures="it wants {wanted} GiB, and {free} of {total} GiB are free",
        exact=_share_of_what_is_free,
    ),
    Row(
        "memory.kv",
        "nothing of vLLM's share of the memory is left for the cache once the model is loaded",
        f"give vLLM more: qmd-remote up --generation-gpu-share 0.5; or take a smaller model: {SMALLER}",
        r"No available memory for the cache blocks|requested memory for kv \(-[\d.]+/[\d.]+ GiB\)",
    ),
    Row(
        "memory.kv",
        "the machine has too little free memory for vLLM's cache on the CPU",
        f"end what else uses memory (free -h shows how much is left); or take a smaller model: {SMALLER}",
        r"(?:Available memory on node \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) )?on kv cache allocation is less "
        r"than requested(?: memory for kv \((?P<wanted>[\d.]+)(?:/[\d.]+)? GiB\))?",
        figures="it wants {wanted} GiB, and {free} of {total} GiB are free",
    ),
    Row(
        "memory.context",
        "the cache has no room for one request of the full length",
        "qmd-remote up --generation-context 4096; or give vLLM more of the GPU: --generation-gpu-share 0.5",
        r"max seq len \((?P<length>\d+)\), \((?P<wanted>[\d.]+) GiB KV cache is needed(?:.*?available KV cache memory "
        r"\((?P<free>[\d.]+) GiB\))?(?:.*?estimated maximum model length is (?P<fits>\d+))?",
        exit_code=Exit.CONFIGURATION,
        figures="{length} tokens want {wanted} GiB, and there are {free} GiB",
        exact=_context_that_fits,
    ),
    Row(
        "memory.oom",
        "the GPU ran out of memory",
        f"{ROOM_ON_GPU}; or ask for less: {LESS}; or take a smaller model: {SMALLER}",
        r"(?:CUDA out of memory|OutOfMemoryError)(?:.*?Tried to allocate (?P<wanted>[\d.]+ \wiB))?(?:.*?total capacity "
        r"of (?P<total>[\d.]+ \wiB) of which (?P<free>[\d.]+ \wiB) is free)?|CUDA error: out of memory|"
        r"cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED",
        figures="it wanted {wanted} more, and {free} of {total} are free",
    ),
    Row(
        "memory.system",
        "there is no memory left on this machine",
        f"end what else uses memory (free -h shows how much is left); or take a smaller model: {SMALLER}",
        r"^MemoryError\b|DefaultCPUAllocator: (?:can't|not enough) .*memory|Errno 12\] Cannot allocate memory",
    ),
    # before disk.full: both speak of no space
    Row(
        "shm",
        "the shared memory (/dev/shm) is too small",
        "see who uses it: df -h /dev/shm; enlarge it: sudo mount -o remount,size=8G /dev/shm; where qmd-remote runs in "
        "a container itself, start that one with: docker run --shm-size 8g …",
        r"Insufficient space in /dev/shm(?:.*?(?P<wanted>\d+) MiB required, (?P<free>\d+) MiB free)?|"
        r"No space left on device.*/dev/shm|/dev/shm.*No space left on device|insufficient shared memory \(shm\)",
        figures="it wants {wanted} MiB, and {free} MiB are free",
    ),
)

MODELS = (
    Row(
        "model.gated",
        "the model is gated on the hub",
        "accept its licence on its page on the hub, then: export HF_TOKEN=…, and: qmd-remote up",
        r"Access to model (?P<model>[\w.-]+/[\w.-]+) is restricted|GatedRepoError|[Aa]ccess (?:a )?gated repo"
        r"(?: for url \w+://[^/\s]+/(?P<path>[\w.-]+/[\w.-]+)/resolve)?",
        exit_code=Exit.CONFIGURATION,
        exact=_licence_of_model,
    ),
    Row(
        "model.missing",
        "no such model, neither as a folder nor on the hub",
        "check its name, or name another: qmd-remote up --generation-model ID; if it is private: export HF_TOKEN=…",
        r"(?:(?P<model>[\w./-]{1,120}) is not a local folder and )?is not a valid model identifier|"
        r"RepositoryNotFoundError|Repo id must be in the form",
        exit_code=Exit.CONFIGURATION,
        figures="{model}",
    ),
    Row(
        "model.remote_code",
        "the model needs code of its own to run",
        "choose a model that needs none: qmd-remote up --generation-model ID; qmd-remote does not let the generation "
        "engine run a model's code",
        r"contains custom code which must be executed",
        exit_code=Exit.CONFIGURATION,
    ),
    Row(
        "model.unsupported",
        "the engine does not know this kind of model",
        f"choose another model: qmd-remote up --generation-model ID; or a newer image: {OTHER_IMAGE}",
        r"Model architectures? .* (?:are|is|was) (?:not supported|supported in vLLM until)|Transformers does not "
        r"recognize this architecture",
        exit_code=Exit.CONFIGURATION,
    ),
    Row(
        "hub.busy",
        "the model hub limits how often it is asked (HTTP 429)",
        "wait a few minutes, then: qmd-remote up; a token raises the limit: export HF_TOKEN=…",
        r"429 Client Error|429 Too Many Requests|HTTP(?: status)? 429",
    ),
    Row(
        "hub.token",
        "the model hub refuses the token (HTTP 401 or 403)",
        "make a token that may read the model, then: export HF_TOKEN=…, and: qmd-remote up",
        r"(?:401|403) (?:Client Error|Unauthorized|Forbidden).*(?:huggingface|/resolve/|/api/models)|"
        r"HfHubHTTPError: 40[13]\b|your token has the correct permissions|Invalid user token|"
        r"Invalid credentials in Authorization header",
        exit_code=Exit.CONFIGURATION,
    ),
    Row(
        "hub.unreachable",
        "the model hub does not answer, and the model is not cached",
        "connect, then download it: qmd-remote pull; or use models that need no hub: qmd-remote up --preset mini",
        r"outgoing traffic has been disabled|LocalEntryNotFoundError|couldn't connect to|OfflineModeIsEnabled",
        vague=True,
    ),
)

GPU = (
    Row(
        "gpu.driver_old",
        "the NVIDIA driver is older than the engine needs",
        f"update the driver (nvidia-smi shows its version); or take an older image: {OTHER_IMAGE}",
        r"CUDA driver version is insufficient|cudaErrorUnsupportedPtxVersion|cudaErrorInsufficientDriver|compiled with "
        r"an unsupported toolchain|NVIDIA driver on your system is too old|"
        r"unsatisfied condition: cuda>=(?P<needed>[\d.]+\d)",
        figures="it needs CUDA {needed}",
    ),
    Row(
        "gpu.arch",
        "the engine was built for other GPUs than this one",
        f"take an image that knows this GPU, best a newer one: {OTHER_IMAGE}",
        r"no kernel image is available|ptxas fatal",
        exit_code=Exit.CONFIGURATION,
    ),
    Row(
        "gpu.missing",
        "the engine sees no GPU",
        f"see whether the driver does: nvidia-smi; without a GPU: {NO_GPU}",
        r"Failed to infer device type|No CUDA GPUs are available|no CUDA-capable device is detected|Found no NVIDIA "
        r"driver|libcuda\.so\.1: cannot open shared object|Failed to initialize NVML(?!.*mismatch)|NVML Shared Library "
        r"Not Found",
    ),
)

MACHINE = (
    Row(
        "disk.full",
        "the disk is full",
        "free some space (df -h shows where), then: qmd-remote up",
        r"[Nn]o space left on device|Errno 28\]|Disk quota exceeded",
    ),
    Row(
        "port.taken",
        "the port is taken",
        "see who has it: ss -ltnp; then: qmd-remote up, or with another port: qmd-remote up --generation-port PORT",
        r"(?:\('[^']*', (?P<port>\d+)\).*)?[Aa]ddress already in use",
        exact=_holder_of_port,
    ),
    Row(
        "args.unknown",
        "vLLM does not know an option that it was given",
        f"leave it out of --generation-args; or take a newer image: {OTHER_IMAGE}",
        r"(?P<words>unrecognized arguments: .{1,120}|(?<=error: )argument \S{1,60}: .{1,120})",
        exit_code=Exit.CONFIGURATION,
        figures="{words}",
    ),
    Row(
        "context.too_long",
        "the model does not take so many tokens",
        "ask for fewer: qmd-remote up --generation-context 4096",
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
        r"\((?:\w+=(?P<most>\d+))?",
        exit_code=Exit.CONFIGURATION,
        figures="{asked} are asked for, and it was made for {most}",
        exact=_context_of_model,
    ),
    Row(
        "docker.permission",
        "this user may not use the container engine",
        "sudo usermod -aG docker $USER, then log in again; or, without Docker: qmd-remote up --generation process",
        r"permission denied while trying to connect to the [Dd]ocker|Error while fetching server API version.*"
        r"Permission(?:Error| denied)",
    ),
    Row(
        "docker.down",
        "no container engine answers",
        "start it: sudo systemctl start docker; or, without Docker: qmd-remote up --generation process",
        r"Cannot connect to the Docker daemon|Error while fetching server API version",
    ),
)

ENGINE = tuple(
    Row(one.code, one.cause, one.cure, one.pattern, exit_code=one.kind.exit_code, of_engine=True) for one in COMPLAINTS
)

OUT_OF_MEMORY = Row(
    "memory.system",
    "it used more memory than it may, or than this machine has, and was killed for it",
    f"end what else uses memory (free -h shows how much is left); or take a smaller model: {SMALLER}",
)

PART_KILLED = Row(
    "killed",
    "a process of the engine was killed without a word, most likely since memory was short",
    f"end what else uses memory (free -h shows how much is left); or take a smaller model: {SMALLER}",
    exit_code=Exit.FAILED,
)

_LOG = "qmd-remote logs generation"
_NO_PROGRAM = Row(
    "program.missing",
    "the image does not have the program that is to run in it",
    f"choose an image with vLLM: {OTHER_IMAGE}",
    exit_code=Exit.CONFIGURATION,
)

# exit code of a container → what it means when its log does not say
ENDS: Mapping[int, Row] = {
    0: Row("ended", "it ended by itself, as if all were well", f"see why: {_LOG}", exit_code=Exit.FAILED),
    2: Row(
        "args.unknown",
        "vLLM does not take its command line",
        f"see what it says: {_LOG}; or take a newer image: {OTHER_IMAGE}",
        exit_code=Exit.CONFIGURATION,
    ),
    126: _NO_PROGRAM,
    127: _NO_PROGRAM,
    132: Row(
        "crash.sigill",
        "it used an instruction that this processor does not have",
        pattern=r"Fatal Python error: Illegal instruction",
        fix="compute in float32: qmd-remote up --generation-args '--dtype float32'; or take another image: "
        f"{OTHER_IMAGE}",
        exit_code=Exit.CONFIGURATION,
    ),
    134: Row("crash.sigabrt", "it gave up", f"see why: {_LOG}", exit_code=Exit.FAILED),
    135: Row(
        "shm",
        "it could not reach its memory, most likely since /dev/shm is too small",
        pattern=r"Fatal Python error: Bus error",
        fix="see who uses it: df -h /dev/shm; enlarge it: sudo mount -o remount,size=8G /dev/shm",
    ),
    137: Row("killed", "something killed it from outside", "qmd-remote up", exit_code=Exit.FAILED),
    139: Row(
        "crash.sigsegv",
        "it touched memory that is not its own: a fault in the engine or in the driver",
        pattern=r"Fatal Python error: Segmentation fault",
        fix=f"try again: qmd-remote up; if it comes back, take another image: {OTHER_IMAGE}",
        exit_code=Exit.FAILED,
    ),
    143: Row("stopped", "it was stopped from outside (SIGTERM)", "qmd-remote up", exit_code=Exit.FAILED),
}

ROWS: tuple[Row, ...] = (*GPU, *ENGINE, *MEMORY, *MODELS, *MACHINE, *(row for row in ENDS.values() if row.pattern))
