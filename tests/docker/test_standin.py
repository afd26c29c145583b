"""The stand-in for vLLM is what it says: the routes and answers of vLLM 0.32, and each way to fail is the real one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import docker
import httpx
import pytest

MODEL, KEY = "acme/fine", "k3y"
PROMPT = {"model": MODEL, "prompt": "hello"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
Start = Callable[..., "Running"]


class Running:
    """A container of the stand-in, and where it is published."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self.url = ""
        container.reload()
        if container.ports:
            (at,) = container.ports["8000/tcp"]
            self.url = f"http://127.0.0.1:{at['HostPort']}"

    def ask(self, path: str, body: object = None, *, key: str = KEY, raw: bytes = b"", wait_s: float = 10):
        """Its answer; a POST when there is something to send."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        sent: dict[str, Any] = {"content": raw} if raw else {"json": body} if body is not None else {}
        with httpx.Client(trust_env=False, timeout=wait_s, headers=headers) as client:
            return client.request("POST" if sent else "GET", f"{self.url}{path}", **sent)

    def state(self) -> dict[str, Any]:
        """What the engine says of it."""
        self._container.reload()
        return self._container.attrs["State"] | {"Restarts": self._container.attrs["RestartCount"]}

    def log(self) -> str:
        """All that it wrote, in all its runs."""
        return str(self._container.logs().decode())

    def healthy(self) -> bool:
        """Whether its health check answers 200."""
        self._container.reload()
        try:
            return bool(self.ask("/health").status_code == 200)
        except httpx.HTTPError:  # a port that is published answers with nothing until somebody listens
            return False

    def restart(self) -> None:
        """As an engine or a keeper does."""
        self._container.restart(timeout=0)
        self.__init__(self._container)  # type: ignore[misc] - the port may be another one

    def ended(self) -> tuple[int, bool]:
        """Its exit code and whether memory was the cause, once it has ended."""
        until(lambda: self.state()["Status"] == "exited")
        state = self.state()
        return state["ExitCode"], state["OOMKilled"]


def until(true: Callable[[], object], within_s: float = 30) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def containers(engine_client: docker.DockerClient, vllm_image: str) -> Iterator[Callable[..., Running]]:
    """Start the stand-in: `containers(mode, *options)`."""
    made = []

    def start(mode: str, *options: str, **how: Any) -> Running:
        how = {"shm_size": "1g", "init": True, "ports": {"8000/tcp": ("127.0.0.1", None)}, **how}
        variables = {"STANDIN_MODE": mode, "VLLM_API_KEY": KEY, "STANDIN_LIVES_S": "0.5"}
        command = ["vllm", "serve", MODEL, *options]
        made.append(engine_client.containers.run(vllm_image, command, environment=variables, detach=True, **how))
        return Running(made[-1])

    yield start
    for container in made:
        container.remove(force=True, v=True)


@pytest.fixture(scope="module")
def fine(containers: Start) -> Running:
    """One that is ready."""
    one = containers("fine", "--max-model-len", "1024")
    until(one.healthy)
    return one


def test_it_names_its_model(fine: Running):
    """Under the name that clients use, with its context."""
    (model,) = fine.ask("/v1/models").json()["data"]
    assert {"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": 1024} == model


@pytest.mark.parametrize("key", ["", "wrong"])
def test_its_key_guards_the_api_and_nothing_else(fine: Running, key: str):
    """As vLLM's does: what tells of the server is open to everybody."""
    for path, body in (("/v1/models", None), (COMPLETIONS, PROMPT), (CHATS, CHAT), ("/v1/nothing", None)):
        refused = fine.ask(path, body, key=key)
        assert (401, {"error": "Unauthorized"}) == (refused.status_code, refused.json())
    assert [200] * 4 == [
        fine.ask(path, key=key).status_code for path in ("/health", "/ping", "/version", "/metrics")
    ]  # fmt: skip


def test_what_it_does_not_have_is_told_as_its_framework_tells_it(fine: Running):
    """Not in the shape of the API's errors."""
    for path in ("/nothing", "/v1/nothing"):
        assert {"detail": "Not Found"} == fine.ask(path).json()
    for answer in (fine.ask("/health", {}), fine.ask(COMPLETIONS)):
        assert (405, {"detail": "Method Not Allowed"}) == (answer.status_code, answer.json())


def test_it_completes_and_chats(fine: Running):
    """With the members that clients read; without a model's name, too."""
    said = fine.ask(COMPLETIONS, PROMPT).json()
    assert ("text_completion", MODEL, "stop") == (said["object"], said["model"], said["choices"][0]["finish_reason"])
    assert said["choices"][0]["text"]
    chat = fine.ask(CHATS, CHAT).json()
    assert "chat.completion" == chat["object"]
    assert {"role": "assistant", "content": said["choices"][0]["text"]} == chat["choices"][0]["message"]
    assert {"prompt_tokens", "completion_tokens", "total_tokens"} == set(chat["usage"])
    assert 200 == fine.ask(COMPLETIONS, {"prompt": "hello"}).status_code


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, PROMPT), (CHATS, CHAT)])
def test_it_streams(fine: Running, path: str, body: dict[str, Any]):
    """Events that add up to the whole answer, the use at the end if it was asked for, and the last word."""
    streamed = fine.ask(path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *events, last = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert "[DONE]" == last
    *parts, usage = [json.loads(event) for event in events]
    assert ([], 2) == (usage["choices"], usage["usage"]["total_tokens"])
    choices = [part["choices"][0] for part in parts]
    text = "".join(one["delta"].get("content", "") if path == CHATS else one["text"] for one in choices)
    assert text == fine.ask(COMPLETIONS, PROMPT).json()["choices"][0]["text"]
    assert [None] * (len(choices) - 1) + ["stop"] == [one["finish_reason"] for one in choices]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "parameter"),
    [
        (COMPLETIONS, {**PROMPT, "model": "no/such"}, 404, "NotFoundError", "model"),
        (CHATS, {**CHAT, "model": "no/such"}, 404, "NotFoundError", "model"),
        (COMPLETIONS, {"model": MODEL}, 400, "BadRequestError", "prompt"),
        (CHATS, {"model": MODEL}, 400, "Bad Request", "body.messages"),
        (COMPLETIONS, {**PROMPT, "max_tokens": 9999}, 400, "BadRequestError", "max_tokens"),
        (CHATS, b"{broken", 400, "Bad Request", "body.1"),
    ],
)
def test_its_errors_have_the_shape_of_the_real_ones(
    fine: Running, path: str, body: Any, status: int, kind: str, parameter: str
):
    """A message, a type, the parameter, and the status as the code."""
    refused = fine.ask(path, raw=body) if isinstance(body, bytes) else fine.ask(path, body)
    error = refused.json()["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert (status, status, kind, parameter) == (refused.status_code, error["code"], error["type"], error["param"])


def test_it_counts_what_it_completed(fine: Running):
    """The counter that tells work from a hang moves."""

    def count() -> float:
        (line,) = [one for one in fine.ask("/metrics").text.splitlines() if "generation_tokens_total" in one]
        return float(line.rpartition(" ")[2])

    before = count()
    fine.ask(COMPLETIONS, PROMPT)
    assert before < count()


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        ("dies", "CUDA out of memory"),
        ("no-memory", "is less than desired GPU memory utilization"),
        ("gated", "GatedRepoError"),
    ],
)
def test_a_start_that_fails_ends_with_1_and_its_cause_above_the_last_line(containers: Start, mode: str, cause: str):
    """The last line is the one that says nothing."""
    one = containers(mode)
    assert (1, False) == one.ended()
    *above, last = one.log().splitlines()
    assert "Engine core initialization failed. See root cause above" in last
    assert any(cause in line for line in above)


def test_too_small_a_shared_memory_ends_it(containers: Start):
    """Docker gives 64 MiB unless it is told otherwise, which is too little."""
    one = containers("fine", shm_size="64m")
    assert (1, False) == one.ended()
    assert "Insufficient space in /dev/shm" in one.log()


def test_an_option_that_it_does_not_know_ends_it_with_2(containers: Start):
    """As argparse does."""
    one = containers("fine", "--no-such-option", "1")
    assert (2, False) == one.ended()
    assert "vllm: error: unrecognized arguments: --no-such-option 1" in one.log()


def test_memory_that_it_eats_gets_it_killed(containers: Start):
    """By the kernel, and the engine knows why."""
    assert (137, True) == containers("eats", mem_limit="64m", memswap_limit="64m").ended()


def test_one_that_hangs_is_healthy_and_completes_nothing_until_it_is_restarted(containers: Start):
    """The health check alone would never tell."""
    one = containers("hangs")
    until(one.healthy)
    with pytest.raises(httpx.ReadTimeout):
        one.ask(COMPLETIONS, PROMPT, wait_s=0.5)
    assert one.healthy()
    one.restart()
    until(one.healthy)
    assert 200 == one.ask(COMPLETIONS, PROMPT).status_code


@pytest.mark.parametrize(("mode", "code", "health"), [("ends", 0, {200, 503}), ("dies-again", 1, {200})])
def test_one_that_ends_after_it_was_ready_does_so_once(containers: Start, mode: str, code: int, health: set[int]):
    """Its exit code may say that all is well; after the restart it stays."""
    one = containers(mode)
    until(one.healthy)
    seen = set()
    while one.state()["Status"] == "running":
        try:
            seen.add(one.ask("/health").status_code)
        except httpx.HTTPError:
            continue
    assert (code, False) == one.ended()
    assert health == seen
    assert "EngineDeadError" in one.log()
    before = one.log().count("Application startup complete")
    one.restart()
    until(lambda: one.log().count("Application startup complete") > before)
    until(one.healthy)
    assert 1 == one.log().count("this run will end")


def test_one_that_stalls_says_no_more(containers: Start):
    """It runs, and is not ready."""
    one = containers("stalls")
    until(lambda: "GPU KV cache size" in one.log())
    assert "running" == one.state()["Status"]
    assert not one.healthy()


def test_a_model_of_another_name_is_served_where_the_mode_says_so(containers: Start):
    """Which a health check does not tell, either; the option for the name does what it does in vLLM."""
    one, named = containers("other-name"), containers("fine", "--served-model-name", "acme/named")
    for each, name in ((one, "another/model"), (named, "acme/named")):
        until(each.healthy)
        assert [name] == [model["id"] for model in each.ask("/v1/models").json()["data"]]
