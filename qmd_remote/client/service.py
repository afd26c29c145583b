"""One service under check: sends requests as QMD does, and turns each outcome into a row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from qmd_remote.client.causes import Cause, classify
from qmd_remote.client.http import Answer, NotFinite, exchange, make_client
from qmd_remote.client.qmd_config import normalise_url
from qmd_remote.client.report import CheckResult, Status
from qmd_remote.errors import UsageError

OnResult = Callable[[CheckResult], None]

BROKEN_API = "the server does not keep to the API that QMD relies on: use `qmd-remote serve`, or correct the server"
OVERFLOW = "the model overflows: try another DEVICE or model, and see the server's log"

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Verdict:
    """What a check makes of an answer."""

    status: Status
    received: str
    fix: str = ""


class CheckFailed(Exception):
    """A check came out badly: an exchange that failed, or an answer that QMD cannot use."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.message)
        self.cause = cause


def wrong(message: str, fix: str = BROKEN_API) -> CheckFailed:
    """The failure for an answer that came, with a content that QMD cannot use."""
    return CheckFailed(Cause("bad_answer", message, fix))


def encode(body: dict[str, Any]) -> bytes:
    r"""A body as JavaScript's JSON.stringify writes it: UTF-8, and a lone surrogate as its \u escape."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode("utf-8")


class Service:
    """Sends to one URL and collects rows. After a hopeless failure it sends nothing more and skips the rest."""

    def __init__(
        self, url: str | None, reason: str, key: str, limit_s: float, on_result: OnResult, *, names: bool = True
    ) -> None:
        self.url = (url or "").rstrip("/")
        self.key = key
        self.limit_s = limit_s
        self.names = names
        self.on_result = on_result
        self.skipped = "" if url else reason
        self.first_cause: Cause | None = None
        self._seconds: float | None = None
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections."""
        if self._client:
            self._client.close()

    def ask(
        self, path: str, body: dict[str, Any] | None = None, *, with_key: bool = True, limit_s: float | None = None
    ) -> Answer:
        """POST `body`, or GET without one; any HTTP status is an answer. Raises CheckFailed when none comes."""
        limit_s = min(limit_s or self.limit_s, self.limit_s)
        data = None if body is None else encode(body)
        try:
            if with_key:
                self._client = self._client or make_client(self._checked_url(), self.key, names=self.names)
                answer = exchange(self._client, path, data, limit_s=limit_s)
            else:
                with make_client(self._checked_url(), names=self.names) as stranger:
                    answer = exchange(stranger, path, data, limit_s=limit_s)
        except httpx.HTTPError as error:
            raise CheckFailed(classify(error, self.url, limit_s=limit_s)) from error
        self._seconds = answer.seconds
        return answer

    def _checked_url(self) -> str:
        """The URL as QMD would use it, `/v1` at its end included. Raises CheckFailed for what is no URL."""
        try:
            normalise_url(self.url)
        except UsageError as error:
            raise CheckFailed(Cause("bad_url", error.message, error.hint, hopeless=True)) from error
        return self.url

    def refusal(self, answer: Answer) -> CheckFailed:
        """The failure that an answer stands for."""
        return CheckFailed(classify(answer, self.url, with_key=bool(self.key)))

    def json(self, answer: Answer) -> Any:
        """The content of a good answer. Raises CheckFailed for an error status, and for what is no JSON."""
        if answer.status != httpx.codes.OK:
            raise self.refusal(answer)
        try:
            return answer.json()
        except NotFinite as error:
            raise wrong(f"the answer holds {error}, which is not JSON: QMD cannot read any of it", OVERFLOW) from error
        except ValueError as error:
            raise self.refusal(answer) from error

    def check(self, name: str, endpoint: str, sent: str, work: Callable[[], Verdict]) -> CheckResult:
        """Run one check and hand its row on; it is skipped after a hopeless failure."""
        if self.skipped:
            row = CheckResult(name, endpoint, sent, self.skipped, None, "skip")
            self.on_result(row)
            return row
        self._seconds = None
        try:
            verdict = work()
            row = CheckResult(name, endpoint, sent, verdict.received, self._latency(), verdict.status, verdict.fix)
        except CheckFailed as failure:
            cause = failure.cause
            self.first_cause = self.first_cause or cause
            if cause.hopeless:
                self.skipped = f"not sent, since {cause.message}"
            row = CheckResult(name, endpoint, sent, cause.message, self._latency(), "fail", cause.fix, cause.code)
        self.on_result(row)
        return row

    def _latency(self) -> float | None:
        return None if self._seconds is None else round(self._seconds * 1000, 1)
