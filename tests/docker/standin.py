"""A stand-in for `vllm serve`: its routes, error shapes, words while it starts, and ways to fail.

Standard library only, since it runs in an image that has nothing else. Routes and shapes are those that vLLM 0.32
answered with. STANDIN_MODE chooses what happens:

fine        it comes up and answers
slow        a second between phases
stalls      it starts for ever, without another word
dies        out of memory of the GPU while it starts; also no-memory (too little is free), gated (the hub refuses)
eats        memory while it starts, until it is killed; it begins when it has a limit, since it would take the machine's
other-name  it serves a model of another name
ends        after ready, the first time: its engine dies, /health is 503 for a moment, and it ends with exit code 0
dies-again  after ready, the first time: it ends with exit code 1
hangs       the first time: 200 on /health, and no completion

What happens only the first time is remembered in a file of the container, which outlives its restarts.
"""

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODE = os.environ.get("STANDIN_MODE", "fine")
STEP_S = 1.0 if MODE == "slow" else 0.02
BEEN_HERE = Path("/tmp/been-here")
FIRST = not BEEN_HERE.exists()
LIVES_S, SICK_S = float(os.environ.get("STANDIN_LIVES_S", "2.5")), 1.0  # of the modes that end after ready
SHM_LEAST_MB = 160
ANSWER = "lex: passport renewal\nvec: how is a passport renewed\nhyde: A passport is renewed at the office."
OPTIONS = {
    "--served-model-name": str, "--host": str, "--port": int, "--max-model-len": int, "--max-num-seqs": int,
    "--gpu-memory-utilization": float, "--kv-cache-memory-bytes": int, "--tensor-parallel-size": int,
    "--dtype": str, "--seed": int, "--api-key": str,
}  # fmt: skip
FAILURES = {
    "dies": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.",
    "no-memory": "ValueError: Free memory on device cuda:0 (10.12/139.81 GiB) on startup is less than desired GPU "
    "memory utilization (0.9, 125.83 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
    "processes.",
    "gated": "huggingface_hub.errors.GatedRepoError: 403 Client Error. Cannot access gated repo",
}
BOOT = ("INFO [utils.py] vLLM API server version 0.11.1", "INFO [utils.py] non-default args: {}")
LOAD = (
    "INFO [loader.py] Loading safetensors checkpoint shards:   0% Completed | 0/2",
    "INFO [loader.py] Loading safetensors checkpoint shards: 100% Completed | 2/2",
    "INFO [loader.py] Loading weights took 0.70 seconds",
    "INFO [backends.py] Dynamo bytecode transform time: 4.2 s",
    "INFO [kv_cache_utils.py] GPU KV cache size: 65,536 tokens",
)
WARM = (
    "INFO [gpu_model_runner.py] Capturing CUDA graphs (decode, FULL):  50%",
    "INFO [gpu_model_runner.py] Graph capturing finished in 2 secs, took 0.10 GiB",
    "INFO [api_server.py] Starting vLLM API server on http://0.0.0.0:8000",
)


def say(text):
    """A line of the log."""
    print(f"(APIServer pid=1) {text}", flush=True)


def fail(error):
    """End as vLLM does: the cause in the middle, and below it that something was wrong."""
    say("ERROR 11-22 10:00:00 [core.py:700] EngineCore failed to start.")
    say(f"ERROR 11-22 10:00:00 [core.py:700] {error}")
    say("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    sys.exit(1)


def options():
    """The model and the options; an unknown one ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="vllm")
    serve = parser.add_subparsers(required=True).add_parser("serve")
    serve.add_argument("model")
    for name, kind in OPTIONS.items():
        serve.add_argument(name, type=kind)
    return parser.parse_args()


def start():
    """Do what a start does, which may fail."""
    phases(BOOT)
    room = os.statvfs("/dev/shm")
    megabytes = room.f_blocks * room.f_frsize >> 20
    if megabytes < SHM_LEAST_MB:
        what = f"{SHM_LEAST_MB} MiB required, {megabytes} MiB free"
        fail(f"RuntimeError: Insufficient space in /dev/shm for shared-memory allocation: {what}.")
    phases(LOAD)
    if MODE in FAILURES:
        fail(FAILURES[MODE])
    if MODE == "stalls":
        time.sleep(3600)
    eaten = []
    while MODE == "eats" and not limited():
        time.sleep(STEP_S)
    while MODE == "eats":
        eaten.append(os.urandom(1 << 20) * 16)
    phases(WARM)


def limited():
    """Whether this container may have less than a GiB."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(file).exists():
            told = Path(file).read_text().strip()
            return told.isdecimal() and int(told) < 1 << 30
    return False


def phases(lines):
    """Say them, one after the other."""
    for line in lines:
        say(line)
        time.sleep(STEP_S)


class Invalid(Exception):
    """A request that is answered with an error: status, type, parameter and words."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: two would wait for each other's acknowledgement
    name, context, tokens, dead = "?", 0, 0, False
    gets = ("/health", "/ping", "/version", "/metrics", "/v1/models")
    posts = ("/v1/completions", "/v1/chat/completions")

    def do_GET(self):
        """What the server is."""
        if not self.reachable(self.gets, self.posts):
            return
        if self.path == "/metrics":
            text = f'vllm:generation_tokens_total{{model_name="{self.name}"}} {float(Handler.tokens)}\n'
            self.answer(200, text.encode(), "text/plain; version=1.0.0; charset=utf-8")
        elif self.path == "/version":
            self.tell({"version": "0.11.1"})
        elif self.path == "/v1/models":
            one = {"id": self.name, "object": "model", "owned_by": "vllm", "max_model_len": self.context}
            self.tell({"object": "list", "data": [one]})
        else:
            self.answer(503 if Handler.dead else 200, b"", "")

    def do_POST(self):
        """Completions."""
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not self.reachable(self.posts, self.gets):
            return
        try:
            asked = self.checked(raw)
        except Invalid as error:
            status, kind, parameter, words = error.args
            self.tell({"error": {"message": words, "type": kind, "param": parameter, "code": status}}, status)
            return
        if MODE == "hangs" and FIRST:
            time.sleep(3600)
        Handler.tokens += 1
        if asked.get("stream"):
            self.stream((asked.get("stream_options") or {}).get("include_usage"))
            return
        choice = {"message": {"role": "assistant", "content": ANSWER}} if self.chats else {"text": ANSWER}
        ended = {"index": 0, **choice, "logprobs": None, "finish_reason": "stop"}
        self.tell({**self.head(), "choices": [ended], "usage": self.usage})

    usage = {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1}  # noqa: RUF012

    @property
    def chats(self):
        """Whether this is a chat."""
        return self.path == self.posts[1]

    def head(self, chunk=""):
        """The first members of an answer."""
        kind, name = ("chat.completion" + chunk, "chatcmpl-1") if self.chats else ("text_completion", "cmpl-1")
        return {"id": name, "object": kind, "created": int(time.time()), "model": self.name}

    def reachable(self, these, others):
        """Whether the path is one of these, and the key, which guards /v1 only, is right; else the answer is given."""
        key = os.environ.get("VLLM_API_KEY")
        if self.path.startswith("/v1") and key and self.headers.get("authorization") != f"Bearer {key}":
            self.tell({"error": "Unauthorized"}, 401)
        elif self.path in others:
            self.tell({"detail": "Method Not Allowed"}, 405)
        elif self.path not in these:
            self.tell({"detail": "Not Found"}, 404)
        else:
            return True
        return False

    def checked(self, raw):
        """The request, if it is one. Raises Invalid."""
        try:
            asked = json.loads(raw)
        except ValueError:
            raise Invalid(400, "Bad Request", "body.1", "1 validation error:\n  JSON decode error") from None
        if asked.get("model") not in {None, self.name}:
            words = f"The model `{asked['model']}` does not exist. Valid aliases: {self.name}."
            raise Invalid(404, "NotFoundError", "model", words)
        if self.chats and "messages" not in asked:
            raise Invalid(400, "Bad Request", "body.messages", "1 validation error:\n  Field required")
        if not self.chats and not asked.get("prompt"):
            words = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            raise Invalid(400, "BadRequestError", "prompt", words)
        wished = asked.get("max_tokens")
        if wished is not None and wished > self.context:
            words = f"max_tokens={wished} cannot be greater than max_model_len={self.context}."
            raise Invalid(400, "BadRequestError", "max_tokens", words)
        return asked

    def stream(self, with_usage):
        """The answer in pieces, as server-sent events."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if self.chats:
            self.event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        lines = ANSWER.splitlines(keepends=True)
        for at, line in enumerate(lines):
            piece = {"delta": {"content": line}} if self.chats else {"text": line}
            self.event([{"index": 0, **piece, "finish_reason": "stop" if at == len(lines) - 1 else None}])
        if with_usage:
            self.event([], usage=self.usage)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, choices, **more):
        """One event."""
        value = {**self.head(".chunk"), "choices": choices, **more}
        self.chunk(f"data: {json.dumps(value)}\n\n".encode())

    def chunk(self, data):
        """One piece of a body whose length is not known; an empty one is the last."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def tell(self, value, status=200):
        """An answer in JSON."""
        self.answer(status, json.dumps(value).encode(), "application/json")

    def answer(self, status, body, kind):
        """An answer."""
        self.send_response(status)
        if kind:
            self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *values):
        """The line that tells of a request."""
        say(f"INFO:     127.0.0.1:1 - {form % values}")


def end_later():
    """What befalls it after it was ready."""
    say(f"stand-in: this run will end in {LIVES_S} s")
    time.sleep(LIVES_S)
    say("ERROR 11-22 10:00:00 [async_llm.py:400] AsyncLLM output_handler failed.")
    say("ERROR 11-22 10:00:00 [async_llm.py:400] EngineDeadError: EngineCore encountered an issue.")
    if MODE == "ends":
        Handler.dead = True
        time.sleep(SICK_S)
    os._exit(0 if MODE == "ends" else 1)


def main():
    """Start, and serve."""
    asked = options()
    start()
    Handler.name = "another/model" if MODE == "other-name" else asked.served_model_name or asked.model
    Handler.context = asked.max_model_len or 8192
    server = ThreadingHTTPServer((asked.host or "0.0.0.0", asked.port or 8000), Handler)
    server.daemon_threads = True
    say("INFO:     Application startup complete.")
    BEEN_HERE.touch()
    if MODE in {"dies-again", "ends"} and FIRST:
        threading.Thread(target=end_later, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
