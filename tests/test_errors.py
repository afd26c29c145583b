"""The exception tree, which scripts (exit codes), clients (HTTP) and people (messages) rely on."""

from __future__ import annotations

import inspect
import json
from importlib import metadata

import pytest

from qmd_remote import errors
from qmd_remote.errors import ApiError, Exit, ExtraMissing, QmdRemoteError, Unavailable

# name → (parent, exit code, code)
COMMAND_ERRORS = {
    "QmdRemoteError": ("Exception", 1, "error"),
    "UsageError": ("QmdRemoteError", 2, "usage"),
    "NotRunning": ("QmdRemoteError", 3, "not_running"),
    "ConfigError": ("QmdRemoteError", 4, "config"),
    "ModelNotFound": ("ConfigError", 4, "model.missing"),
    "ModelGated": ("ConfigError", 4, "model.gated"),
    "ModelUnsupported": ("ConfigError", 4, "model.unsupported"),
    "PrerequisiteError": ("QmdRemoteError", 5, "prerequisite"),
    "ExtraMissing": ("PrerequisiteError", 5, "extra.missing"),
    "DeviceUnavailable": ("PrerequisiteError", 5, "device.unavailable"),
    "HubUnreachable": ("PrerequisiteError", 5, "hub.unreachable"),
    "WaitEnded": ("QmdRemoteError", 6, "wait.ended"),
    "ServiceFailed": ("QmdRemoteError", 1, "service.failed"),
    "Interrupted": ("QmdRemoteError", 130, "interrupted"),
}
# name → (status, type, code)
HTTP_ERRORS = {
    "ApiError": (500, "server_error", "internal_error"),
    "BadRequest": (400, "invalid_request_error", "invalid_value"),
    "Unauthorized": (401, "authentication_error", "invalid_api_key"),
    "NotFound": (404, "invalid_request_error", "not_found"),
    "BodyTooLarge": (413, "invalid_request_error", "body_too_large"),
    "Unavailable": (503, "service_unavailable", "unavailable"),
}


def tree() -> dict[str, type[Exception]]:
    """Every exception that the module defines."""
    found = inspect.getmembers(errors, lambda member: inspect.isclass(member) and issubclass(member, Exception))
    return {name: cls for name, cls in found if cls.__module__ == errors.__name__}


def test_the_public_names_are_pinned():
    """Adding, renaming or removing an error is a decision, not an accident."""
    assert set(COMMAND_ERRORS) | set(HTTP_ERRORS) == set(tree())


@pytest.mark.parametrize("name", COMMAND_ERRORS)
def test_a_command_error_keeps_its_place_and_codes(name: str):
    """Parent, exit code and code of each error are what scripts rely on."""
    cls = tree()[name]
    assert COMMAND_ERRORS[name] == (cls.__mro__[1].__name__, cls.exit_code, cls.code)


@pytest.mark.parametrize("name", HTTP_ERRORS)
def test_an_http_error_keeps_its_status_and_shape(name: str):
    """Status, type and code of each HTTP error are what clients rely on."""
    cls = tree()[name]
    assert HTTP_ERRORS[name] == (cls.status, cls.type, cls.code)
    parent = "QmdRemoteError" if name == "ApiError" else "ApiError"
    assert parent == cls.__mro__[1].__name__


def test_the_exit_codes_are_pinned():
    """The numbers that commands exit with never change their meaning."""
    expected = {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "NOT_RUNNING": 3,
        "CONFIGURATION": 4,
        "PREREQUISITE": 5,
        "WAIT_ENDED": 6,
        "INTERRUPTED": 130,
    }
    assert expected == {member.name: int(member) for member in Exit}


def test_the_drawing_shows_the_whole_tree():
    """The tree in the module's docstring names every error, with the exit code or status that it has."""
    drawing = {line.split("──")[-1].split()[0]: line for line in (errors.__doc__ or "").splitlines() if "──" in line}
    assert set(tree()) - {"QmdRemoteError"} == set(drawing)
    for name, line in drawing.items():
        cls = tree()[name]
        if " exit " in line:
            assert int(line.split(" exit ")[1].split()[0]) == cls.exit_code
        if issubclass(cls, ApiError) and cls is not ApiError:
            assert int(line.split("──")[-1].split()[1]) == cls.status


def test_an_error_tells_code_message_and_hint():
    """What the JSON envelope shows of an error is its code, message and hint, and a given code replaces the class's."""
    error = QmdRemoteError("it broke", hint="mend it", code="thing.broken")
    assert {"code": "thing.broken", "message": "it broke", "hint": "mend it"} == error.as_dict()
    assert "error" == QmdRemoteError("x").code
    assert "it broke" == str(error)


def test_an_http_error_has_the_shape_of_openai():
    """The body of an HTTP error is OpenAI's, with the field's name as `param`."""
    error = Unavailable("busy", param="input", code="full", retry_after=3)
    expected = {"error": {"message": "busy", "type": "service_unavailable", "param": "input", "code": "full"}}
    assert expected == error.body()
    assert 3 == error.retry_after


def test_a_missing_extra_names_all_three_installers():
    """Who lacks an extra reads the command for pipx, for uv and for pip; the exit code is that of a prerequisite."""
    error = ExtraMissing("server", "torch")
    assert "'torch'" in error.message
    assert Exit.PREREQUISITE == error.exit_code
    for start in ("pipx install --force 'qmd-remote[server]", "uv tool install --force 'qmd-remote[server]"):
        assert start in error.hint
    assert "pip install 'qmd-remote[server]" in error.hint.split("·")[-1]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (json.dumps({"url": "file:///src/qmd"}), "qmd-remote[mini] @ file:///src/qmd"),
        (None, "qmd-remote[mini]"),
        ("{}", "qmd-remote[mini]"),
        ("no json", "qmd-remote[mini]"),
    ],
)
def test_the_requirement_points_at_where_this_installation_came_from(
    origin: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
):
    """An installation from a folder is extended from that folder, any other by name."""

    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert "direct_url.json" == name
            return origin

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    assert expected == errors.requirement("mini")


def test_a_requirement_without_an_installation_is_the_bare_name(monkeypatch: pytest.MonkeyPatch):
    """Run from a source tree that is not installed, the hint still names the package."""

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert "qmd-remote[server]" == errors.requirement("server")
