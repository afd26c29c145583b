"""Who can reach a server: addresses, and what an address other than loopback requires."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from qmd_remote.errors import ConfigError

if TYPE_CHECKING:
    from qmd_remote.settings import Settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def connect_host(host: str) -> str:
    """The address at which this machine itself reaches a server that listens on `host`."""
    bare = host.strip("[]")
    if bare in {"0.0.0.0", ""}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    if bare == "::":
        return "[::1]"
    return f"[{bare}]" if ":" in bare else bare


def numeric(host: str) -> str:
    """An address as digits, since container engines publish on nothing else. Raises ConfigError (bind.address)."""
    try:
        return str(socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"'{host}' is no address of this machine: {error}",
            hint="name one of its addresses, or 127.0.0.1",
            code="bind.address",
        ) from None


def require_safe_bind(settings: Settings) -> None:
    """Refuse to serve strangers without a key.

    Raises ConfigError for an address other than loopback when there is neither a key nor `insecure_no_auth`.
    """
    if is_loopback(settings.host) or settings.insecure_no_auth or settings.key:
        return
    raise ConfigError(
        f"{settings.host} can be reached from other machines, and no API key is set",
        hint=f"qmd-remote up --host {settings.host} makes one; or add --api-key-file FILE, or set QMD_REMOTE_API_KEY; "
        "--insecure-no-auth serves everybody",
        code="bind.no_key",
    )


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    """What the server encrypts with, or None when it does not.

    Raises ConfigError when one of the two files is missing, cannot be read, or they do not belong together.
    """
    if not settings.tls_cert and not settings.tls_key:
        return None
    if not settings.tls_cert or not settings.tls_key:
        missing = "--tls-key" if settings.tls_cert else "--tls-cert"
        raise ConfigError(
            f"TLS needs a certificate and its private key, and {missing} is missing",
            hint=f"add {missing} FILE",
            code="tls.incomplete",
        )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # a key with a passphrase would ask for it on the terminal; there is none in the background
        context.load_cert_chain(
            Path(settings.tls_cert).expanduser(), Path(settings.tls_key).expanduser(), password=lambda: b""
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the certificate {settings.tls_cert} and the key {settings.tls_key} cannot be used: {reason}",
            hint="both are PEM files; the key has no passphrase and belongs to the certificate",
            code="tls.unusable",
        ) from None
    return context


def trusting(certificate: str, *, names: bool = False) -> ssl.SSLContext:
    """How this machine verifies its own server: by exactly that certificate, whatever names stand in it.

    It is asked for by an address of loopback, which few certificates name; with `names` that counts, as it does for
    QMD. An empty `certificate` gives the usual trust.
    """
    if not certificate:
        return ssl.create_default_context()
    try:
        context = ssl.create_default_context(cafile=Path(certificate).expanduser())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the certificate {certificate} cannot be read: {reason}",
            hint="put it back there, or: qmd-remote up --tls-cert FILE --tls-key FILE",
            code="tls.unusable",
        ) from None
    context.check_hostname = names
    # the file may hold a server's certificate without its authority's
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
