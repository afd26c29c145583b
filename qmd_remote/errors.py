"""Every error qmd-remote raises on purpose, one tree.

QmdRemoteError                    what happened, why, and the next command to type
├── UsageError            exit 2  the command line is wrong
├── NotRunning            exit 3  the service asked about is not up
├── ConfigError           exit 4  a setting or a file is wrong
│   ├── ModelNotFound             no such folder, and no such model on the hub
│   ├── ModelGated                the hub wants a licence accepted, or a token
│   └── ModelUnsupported          the files are there but are no model for this job
├── PrerequisiteError     exit 5  the machine lacks something
│   ├── ExtraMissing              a part of qmd-remote is not installed
│   ├── DeviceUnavailable         the device asked for is not there
│   └── HubUnreachable            the model hub does not answer and nothing is cached
├── WaitEnded             exit 6  a wait met its stall limit or its hard cap
├── ServiceFailed         exit 1  a service crashed, or answers wrongly
├── Interrupted         exit 130  the user said stop
└── ApiError                      an HTTP answer in OpenAI's error shape
    ├── BadRequest        400     a field is wrong; `param` names it
    ├── Unauthorized      401     no key, or a wrong one
    ├── NotFound          404     no such path
    ├── BodyTooLarge      413     more bytes than the server takes
    └── Unavailable       503     loading, overloaded or recovering: the same request may work later
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    CONFIGURATION = 4
    PREREQUISITE = 5
    WAIT_ENDED = 6
    INTERRUPTED = 130


class QmdRemoteError(Exception):
    """The base of all expected failures.

    `message` says what happened and why; `hint` says what to do next, best a command to type;
    `code` is a stable, dotted name for scripts (`hub.unreachable`).
    """

    code = "error"
    exit_code = Exit.FAILED

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def as_dict(self) -> dict[str, Any]:
        """The error as the `error` member of the JSON envelope."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UsageError(QmdRemoteError):
    """The command line is wrong."""

    code = "usage"
    exit_code = Exit.USAGE


class NotRunning(QmdRemoteError):
    """The service asked about is not up."""

    code = "not_running"
    exit_code = Exit.NOT_RUNNING


class ConfigError(QmdRemoteError):
    """A setting or a file is wrong."""

    code = "config"
    exit_code = Exit.CONFIGURATION


class ModelNotFound(ConfigError):
    """Neither a folder nor a model on the hub has this name."""

    code = "model.missing"


class ModelGated(ConfigError):
    """The hub refuses the model without an accepted licence or a token."""

    code = "model.gated"


class ModelUnsupported(ConfigError):
    """The files are there, but they are no model for this job."""

    code = "model.unsupported"


class PrerequisiteError(QmdRemoteError):
    """The machine lacks something."""

    code = "prerequisite"
    exit_code = Exit.PREREQUISITE


class ExtraMissing(PrerequisiteError):
    """A part of qmd-remote that this command needs is not installed."""

    code = "extra.missing"

    def __init__(self, extra: str, missing: str) -> None:
        what = requirement(extra)
        super().__init__(
            f"this command needs the '{extra.rpartition(',')[2]}' part of qmd-remote, and '{missing}' is not installed",
            hint=(
                f"install it with one of:  pipx install --force '{what}'"
                f"  ·  uv tool install --force '{what}'"
                f"  ·  pip install '{what}'"
            ),
        )


def requirement(extra: str) -> str:
    """What to hand to pip for this installation with an extra: from the folder or file it came from, else by name."""
    from importlib import metadata

    try:
        origin = json.loads(metadata.distribution("qmd-remote").read_text("direct_url.json") or "{}").get("url")
    except (metadata.PackageNotFoundError, ValueError):
        origin = None
    return f"qmd-remote[{extra}] @ {origin}" if origin else f"qmd-remote[{extra}]"


class DeviceUnavailable(PrerequisiteError):
    """The device asked for is not there."""

    code = "device.unavailable"


class HubUnreachable(PrerequisiteError):
    """The model hub does not answer, and the model is not cached."""

    code = "hub.unreachable"


class WaitEnded(QmdRemoteError):
    """A wait met its stall limit or its hard cap."""

    code = "wait.ended"
    exit_code = Exit.WAIT_ENDED


class ServiceFailed(QmdRemoteError):
    """A service crashed, or answers wrongly."""

    code = "service.failed"


class Interrupted(QmdRemoteError):
    """The user said stop."""

    code = "interrupted"
    exit_code = Exit.INTERRUPTED


class ApiError(QmdRemoteError):
    """An HTTP answer in OpenAI's error shape.

    `param` names the field to change; `retry_after` (seconds) becomes the Retry-After header.
    """

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The response body: `{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    """A field of the request is wrong in form or value."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Unauthorized(ApiError):
    """No key, or a wrong one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotFound(ApiError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class BodyTooLarge(ApiError):
    """More bytes than the server takes."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class Unavailable(ApiError):
    """Loading, overloaded or recovering: the same request may work later."""

    status = 503
    type = "service_unavailable"
    code = "unavailable"
