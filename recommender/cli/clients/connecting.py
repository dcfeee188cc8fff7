"""Call a health port, and explain a failed call to a user. Does not import Typer, which is slow."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import grpc
from grpc import StatusCode

from recommender.edges.address import address_of, is_this_machine

NAME: Final = "readiness"
TIMEOUT: Final = 2.0
LEAST_TIMEOUT: Final = 0.001
MOST_TIMEOUT: Final = 86_400.0
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_MOST_BYTES = 127
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (not listened on)

_SIGNS = (
    ("Connection refused", "no server listens there: start `recommender serve`, or give its address with {where}"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS: leave out --ca, or ask the port that does"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not from the authority in --ca: take the file of the authority that signed it",
    ),
    (
        "Hostname Verification",
        "its certificate is for other names than this: use a name that it has, or a certificate that has this name",
    ),
    ("Failed parsing HTTP/2", "that port does not speak gRPC: use the server's own port, not the metrics port"),
    ("resolving", "that host name has no address: check {where}"),
    ("lookup", "that host name has no address: check {where}"),
)
_CLOSED = "Socket closed"
_UNENCRYPTED = "it hung up: if it speaks TLS, give the file of its authority with --ca"
_ENCRYPTED = "it hung up: if it asks callers for a certificate, give yours with --certificate and --key"


def meaning(code: StatusCode, details: str | None, *, where: str, tls: bool = False) -> str | None:
    """Advice on a call that ended with this status; None if the status says it.

    `where` names the options that take the server's address.
    """
    said = details or ""
    if code is StatusCode.UNAVAILABLE:
        if _CLOSED in said:
            return _ENCRYPTED if tls else _UNENCRYPTED
        for sign, sentence in _SIGNS:
            if sign in said:
                return sentence.format(where=where)
    if code is StatusCode.UNIMPLEMENTED:
        return f"that is not the recommender's service, maybe its health port: check {where}"
    if code is StatusCode.UNAUTHENTICATED:
        return f"{code.name}: {said} (give it with --token-file)"
    return None


class HealthError(Exception):
    """A health port gave no status; the message says why, `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def ask_health(address: str, name: str, timeout: float, *, here: bool) -> str:
    """Ask a health port for the status of `name`; `here` says that it is this machine's. Raises HealthError."""
    request = health_request(name)
    options = (("grpc.enable_http_proxy", int(not (here or is_this_machine(address)))),)
    try:
        with grpc.insecure_channel(address, options) as channel:
            check: grpc.UnaryUnaryMultiCallable[bytes, str] = channel.unary_unary(
                "/grpc.health.v1.Health/Check", None, _status
            )
            return check(request, timeout=timeout)
    except grpc.RpcError as error:
        said = meaning(error.code(), error.details(), where="--address HOST:PORT") or error.details()
        if error.code() is StatusCode.NOT_FOUND:
            said = "unknown name; the service's own port has no names, use RECOMMENDER_HEALTH_PORT"
        raise HealthError(f"{name} of {address}: {error.code().name}: {said}", 1) from error
    except ValueError as error:
        raise HealthError(f"{name} of {address} cannot be asked: {error}", 2) from error


def health_address(host: str, port: int) -> str:
    """Return where a process of this machine reaches the health port of a server that listens at `host`."""
    return address_of(_REACHED_AT.get(host, host), port)


def probe(words: Sequence[str]) -> None:
    """Run `recommender health` with these words and end the process; return if they need a parser or the settings.

    Orchestrators probe every few seconds. Typer and the settings take three times as much CPU as the call.
    """
    options = dict(zip(words[::2], words[1::2], strict=False))
    name, timeout = options.pop("--name", NAME), _seconds(options.pop("--timeout", str(TIMEOUT)))
    asked = options.pop("--address", None)
    address = asked or _address_in_environment()
    if options or len(words) % 2 or address is None or timeout is None:
        return
    try:
        status = ask_health(address, name, timeout, here=asked is None)
    except HealthError as error:
        sys.stderr.write(f"recommender: {error}\n")
        sys.exit(error.code)
    sys.stdout.write(f"{name}: {status}\n")
    sys.exit(status != "SERVING")


def _seconds(word: str) -> float | None:
    try:
        seconds = float(word)
    except ValueError:
        return None
    return seconds if LEAST_TIMEOUT <= seconds <= MOST_TIMEOUT else None


def _address_in_environment() -> str | None:
    """The address of the health port if the environment alone names it; None if the settings have to be read."""
    host, port = os.environ.get("RECOMMENDER_HOST"), os.environ.get("RECOMMENDER_HEALTH_PORT", "")
    return health_address(host, int(port)) if host and port.isdecimal() and int(port) else None


# HealthCheckRequest and HealthCheckResponse have one field each; importing protobuf takes as long as the call.


def health_request(name: str) -> bytes:
    """Build a request: field 1, the name; a length below 128 is one byte. Raises HealthError if it has more."""
    try:
        encoded = name.encode()
    except UnicodeError:
        raise HealthError("--name must be UTF-8 text", 2) from None
    if len(encoded) > _MOST_BYTES:
        raise HealthError(
            f"--name has {len(encoded)} bytes and may have {_MOST_BYTES}: ask for startup, readiness or liveness", 2
        )
    return bytes((0x0A, len(encoded))) + encoded


def _status(answer: bytes) -> str:
    """Field 1, the status; 0 where the field is left out."""
    return _STATUSES[answer[1] if answer.startswith(b"\x08") else 0]
