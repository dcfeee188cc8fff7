"""What a failed call means to the person who typed it."""

from __future__ import annotations

from grpc import StatusCode

_SIGNS = (
    ("Connection refused", "nobody listens there: start `recommender serve`, or say where it is with {where}"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS: leave out --ca, or ask the port that does"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not from the authority in --ca: take the file of the authority that signed it",
    ),
    (
        "Hostname Verification",
        "its certificate is for other names than this: use a name that it has, or a certificate that has this name",
    ),
    ("Failed parsing HTTP/2", "that port speaks something else: not the metrics port, the server's own is needed"),
    ("resolving", "that name has no address: say where the server is with {where}"),
    ("lookup", "that name has no address: say where the server is with {where}"),
)
_CLOSED = "Socket closed"
_UNENCRYPTED = "it hung up: if it speaks TLS, give the file of its authority with --ca"
_ENCRYPTED = "it hung up: if it asks callers for a certificate, give yours with --certificate and --key"


def meaning(code: StatusCode, details: str | None, *, where: str, tls: bool = False) -> str | None:
    """What to do about a call that ended with this status; None if the status says it.

    `where` names the options that say where the server is.
    """
    said = details or ""
    if code is StatusCode.UNAVAILABLE:
        if _CLOSED in said:
            return _ENCRYPTED if tls else _UNENCRYPTED
        for sign, sentence in _SIGNS:
            if sign in said:
                return sentence.format(where=where)
    if code is StatusCode.UNIMPLEMENTED:
        return f"that is not the recommender's service, maybe its health port: say where it is with {where}"
    if code is StatusCode.UNAUTHENTICATED:
        return f"{code.name}: {said} (give it with --token-file)"
    return None
