"""Every error raised on purpose, sorted by who is at fault; the edge maps each to a status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_SHOWN = 80


def quoted(value: object) -> str:
    """Quote what a caller sent, cut to 80 characters, so that a message stays small."""
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


class RecommenderError(Exception):
    """Base of all errors raised on purpose; the message is a sentence its reader can act on."""


# The caller's fault: another request would do.


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request: `field` as the proto spells it, with an index where it has one.

    An empty `field` is the whole message.
    """

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class InvalidRequestError(RecommenderError):
    """The caller's request is invalid; `violations` lists the reasons by field."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = violations


class InputsError(InvalidRequestError):
    """The version takes other inputs than the request brings; another version may answer it.

    `untaken` are the fields that the version does not take, all of them; none if it lacks an input.
    """

    def __init__(self, *violations: Violation, untaken: Iterable[str] = ()) -> None:
        super().__init__(*violations)
        self.untaken = frozenset(untaken)


class UnauthenticatedError(RecommenderError):
    """The caller brought no token that is good; the message never says which it lacks."""


class PermissionDeniedError(RecommenderError):
    """The caller's token is good, and not for this call."""


class CatalogueFullError(RecommenderError):
    """The change would put more into the catalogue than it may hold."""


class UnknownModelError(RecommenderError):
    """The request names a model that is not served."""


# No one's fault: the same request may succeed later, or on another server.


class BusyError(RecommenderError):
    """A limit is reached; `retry_after` is when room is expected, in seconds from now."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(f"{message}; retry in {retry_after * 1e3:.0f} ms")
        self.retry_after = retry_after


class BacklogFullError(BusyError):
    """As many callers wait as may."""

    def __init__(self, max_backlog: int, retry_after: float) -> None:
        super().__init__(f"the backlog is full: {max_backlog} requests are waiting", retry_after)


class QuotaError(BusyError):
    """A caller has reached one of its limits: of its token, or of open streams."""


class DeadlineError(RecommenderError):
    """The answer would come, or has come, after the caller's deadline."""


class UnavailableError(RecommenderError):
    """This server takes no requests now: it starts, drains, or has lost its engine."""


# Our fault.


class EngineError(RecommenderError):
    """The engine failed on a batch, or answered something that is no answer to it."""


class EngineHungError(EngineError):
    """A run did not end within the engine timeout."""


# The operator's fault: the server does not start.


class StartError(RecommenderError):
    """The server cannot start; the message says what to change."""


class SettingsError(StartError):
    """A setting is unknown or has a value it cannot have."""


class ModelError(StartError):
    """The model is missing, damaged, or not of the contract that this server speaks."""


class SourceError(StartError):
    """Where models come from cannot be asked now: a registry that is down, slow or refuses us."""


class SourceTimeoutError(SourceError):
    """A source that was asked has not answered in time."""


class ProviderError(StartError):
    """The execution provider that was asked for is not to be had on this machine."""
