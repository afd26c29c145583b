"""The way to the generation service: how it is asked, how many ask at once, and what a failure there is called here.

Bytes are sent as they are, and so are the service's answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType

import httpx

from qmd_remote.errors import ApiError, Unavailable
from qmd_remote.reach import is_loopback
from qmd_remote.server import completion
from qmd_remote.server.generation_url import Bearer, place, under
from qmd_remote.settings import Settings

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
VERSION = "/version"

CONNECT_S = 5.0
SILENCE_S = 600.0  # between two bytes: an answer that is not streamed comes all at once, after all of its computation
UNDER_WAY = 64  # more than engines work on at once; each holds a body and two connections here
WAITING = 64  # for one of these to end; each holds a body here
BUSY_RETRY_S = 5
MAX_SAID_BYTES = 2**20  # of an answer that is looked into: an expansion, of some 400 tokens
MODELS_S = 1.5  # clients give their whole look-up 2 s
MODELS_KEPT_S = 5.0
MAX_LIST_BYTES = 2**20

# Lists of what passes, not of what is kept back: keys and cookies have names that nobody can foresee.
TO_SERVICE = frozenset({b"accept", b"accept-encoding", b"content-encoding", b"content-type", b"x-request-id"})
TO_CLIENT = frozenset({b"cache-control", b"content-encoding", b"content-type", b"retry-after", b"x-request-id"})
# of the service: it does not know this server, or not well enough; a client that read them would mistrust its own key
NOT_LET_IN = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED})
REFUSED = (
    "the generation service refuses this server ({}), which says nothing of your own key. On this server's machine, "
    "look at the credentials in QMD_REMOTE_GENERATION_URL; a service that runs there gets the right key from "
    "`qmd-remote up`"
)
STREAM = "text/event-stream"
# a connection that is kept may end just when it is used again, and then nobody knows whether the request was worked on
ONE_REQUEST = (b"connection", b"close")

Headers = list[tuple[bytes, bytes]]


class TooLong(ApiError):
    """The service says more than anybody wants to hold here."""

    status = 502
    code = "generation_failed"


@dataclass(frozen=True)
class Said:
    """A whole answer of the generation service; of its headers those that are the client's."""

    status: int
    headers: Headers
    content: bytes


class Gateway:
    """Sends requests to the generation service of `settings`; an async context manager, which holds the connections.

    Raises ConfigError for settings whose generation URL is none.
    """

    def __init__(self, settings: Settings) -> None:
        self._url, self._auth = place(settings.generation_at)
        ours = settings.generation_engine in {"docker", "process"}
        self._name = settings.generation_model if ours else ""
        # a container that other machines can reach was given our key
        if settings.generation_engine == "docker" and not is_loopback(settings.generation_host) and settings.key:
            self._auth = Bearer(settings.key)
        self._expansions = "on" if settings.repair_expansions else "off"
        self._wait_s = settings.queue_wait_s
        self._slots = asyncio.Semaphore(UNDER_WAY)
        self._waiting = 0
        self._client: httpx.AsyncClient | None = None
        self._listed: list[str] = []
        self._fresh_until = 0.0
        self._asking: asyncio.Task[list[str]] | None = None

    async def __aenter__(self) -> Gateway:
        """Get ready to send."""
        self._client = httpx.AsyncClient(
            auth=self._auth,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=self._url is not None and not is_loopback(self._url.host),  # no proxy leads to this machine
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._asking:
            self._asking.cancel()
        if self._client:
            await self._client.aclose()

    def facts(self) -> dict[str, str | None]:
        """What /health shows: its state, on or off, its model where that is known, whether it repairs expansions."""
        if self._url is None:
            return {"model": None, "state": "off"}
        model = self._name or next(iter(self._listed), None)
        return {"model": model, "state": "on", "expansions": self._expansions}

    async def models(self) -> list[str]:
        """The names of the service's models, its own first; none when it is off, or does not tell within MODELS_S.

        Raises nothing. What it said is remembered for MODELS_KEPT_S.
        """
        if self._url is None:
            return []
        if time.monotonic() < self._fresh_until:
            return self._listed
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_models())
        return await asyncio.shield(self._asking)  # others may wait for it, too

    async def model_for(self, name: str) -> str:
        """`name` where the service has a model of that name, else that of its own.

        Of a service that does not tell now counts what it told last; of one that never has `name` is left as it is.
        """
        if name and name == self._name:
            return name
        listed = await self.models() or self._listed
        return name if name in listed else self._name or next(iter(listed), name)

    async def version(self) -> str | None:
        """The version that the service names, as vLLM does; empty when it names none, None when it does not answer."""
        try:
            async with asyncio.timeout(MODELS_S), self._exchange("GET", VERSION, []) as answer:
                content = await whole(answer, MAX_LIST_BYTES)
        except (ApiError, TimeoutError):
            return None
        return None if answer.is_server_error else completion.version_of(content)

    async def said(self, path: str, headers: Headers, body: bytes) -> Said:
        """The service's whole answer to a POST. Raises ApiError: as `asked` does, and as `whole` for MAX_SAID_BYTES."""
        async with self.asked(path, headers, body) as answer:
            content = await whole(answer, MAX_SAID_BYTES)
            return Said(answer.status_code, chosen(answer.headers.raw, TO_CLIENT), content)

    @asynccontextmanager
    async def asked(self, path: str, headers: Headers, body: bytes) -> AsyncIterator[httpx.Response]:
        """The service's answer to a POST, its body unread. Leaving the block ends the request, wherever it stands.

        Raises ApiError: 503 when generation is off or too many requests are under way, 502 when the service cannot be
        reached or lets this server not in, 504 when it says nothing for SILENCE_S.
        """
        async with self._slot(), self._exchange("POST", path, headers, body) as answer:
            if answer.is_redirect:
                raise _problem(
                    502,
                    "generation_unreachable",
                    "the generation service is at another address: QMD_REMOTE_GENERATION_URL must name that one",
                )
            if answer.status_code in NOT_LET_IN:
                raise _problem(502, "generation_refused", REFUSED.format(answer.status_code))
            yield answer

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        message = f"{UNDER_WAY} generation requests are under way: send this one again later"
        busy = Unavailable(message, code="generation_busy", retry_after=BUSY_RETRY_S)
        if self._slots.locked() and self._waiting >= WAITING:
            raise busy
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise busy from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, headers: Headers, body: bytes = b""
    ) -> AsyncIterator[httpx.Response]:
        if self._url is None:
            raise _problem(
                503,
                "generation_off",
                "generation is off on this server: on its machine, `qmd-remote up --generation process` starts it, and "
                "`qmd-remote up --generation external --generation-url URL` uses one that runs elsewhere",
            )
        assert self._client is not None, "the gateway is used outside of its context"
        # made by hand: the client would add headers of its own, and an answer would be compressed for it
        url = self._url.copy_with(raw_path=under(self._url, path))
        request = httpx.Request(method, url, headers=[*headers, ONE_REQUEST], content=body)
        with _explained():
            answer = await self._client.send(request, stream=True)
        try:
            yield answer
        finally:
            await answer.aclose()

    async def _ask_models(self) -> list[str]:
        try:
            async with asyncio.timeout(MODELS_S), self._exchange("GET", MODELS, []) as answer:
                content = await whole(answer, MAX_LIST_BYTES)
            names = completion.names_of(content) if answer.is_success else []
        except (ApiError, TimeoutError, ValueError):
            return []
        if names:
            # an engine may list every model of its cache; the first is the one that clients take
            self._listed = sorted(names, key=lambda name: name != self._name)
            self._fresh_until = time.monotonic() + MODELS_KEPT_S
        return self._listed if names else []


def chosen(headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]) -> Headers:
    """Those of `headers` that have one of these names, in small letters."""
    return [(name.lower(), value) for name, value in headers if name.lower() in names]


@contextmanager
def _explained() -> Iterator[None]:
    """Failures on the way to the service and back, as what the client is told: no address, and what to do."""
    see = "on its machine, see `qmd-remote status` and `qmd-remote logs generation`"
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError):
        message = f"the generation service cannot be reached: {see}"
        raise _problem(502, "generation_unreachable", message) from None
    except httpx.TimeoutException:
        message = f"the generation service said nothing for {SILENCE_S:.0f} s: ask for fewer tokens, or {see}"
        raise _problem(504, "generation_timeout", message) from None
    except httpx.HTTPError:
        message = f"the generation service broke off before its answer was whole: send this again, or {see}"
        raise _problem(502, "generation_failed", message) from None


def _problem(status: int, code: str, message: str) -> ApiError:
    problem = ApiError(message, code=code)
    problem.status = status
    problem.type = Unavailable.type if status == Unavailable.status else ApiError.type
    return problem


async def whole(answer: httpx.Response, limit: int) -> bytes:
    """The answer's body as it was sent. Raises ApiError: 502 when it breaks off, TooLong for over `limit` bytes."""
    content = bytearray()
    with _explained():
        async for chunk in answer.aiter_raw():
            content += chunk
            if len(content) > limit:
                raise TooLong(f"the generation service's answer is larger than {limit >> 20} MiB: ask for fewer tokens")
    return bytes(content)
