"""Authorisation and quotas: bearer tokens, known by their digests, with a name and limits each.

An edge calls `enter` with the caller's header and holds the visit open while the call lasts. The cost of a call is
charged where it is known, by `charge`: deep inside, so the visit travels in the task's context.

Tokens are random and long (`new_token`), so a plain SHA-256 of one cannot be reversed. A digest is compared with every
known digest, each in constant time, so the duration reveals nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Annotated, Literal, Self, TypeAlias

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from recommender.errors import PermissionDeniedError, QuotaError, StartError, UnauthenticatedError

Scope: TypeAlias = Literal["recommend", "catalogue"]
"""Scopes of a token: to ask for recommendations and models, or to change the catalogue."""

AUTHORIZATION_KEY = "authorization"
_SCHEME = "bearer "
_LONGEST_TOKEN = 4096
_CONCURRENCY_RETRY = 0.05
"""Seconds after which a caller with too many open calls may try again: one of them may have ended by then."""

_ROUNDING = 1e-9
"""Times are floats: a request that is due is not refused for rounding."""

log = structlog.get_logger(__name__)

_visit: ContextVar[Visit | None] = ContextVar("visit", default=None)


class Grant(BaseModel):
    """Rights and limits of one name in the tokens file; a limit that is not set does not exist.

    Requests are counted, not calls: each one in a batch call or on a stream counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(min_length=1)]
    expires: AwareDatetime | None = None
    requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    burst: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    concurrent_calls: Annotated[int, Field(ge=1)] | None = None
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("recommend",)


@dataclass(slots=True)
class Usage:
    """Calls in flight and counts of one name, kept while tokens are replaced."""

    open: int = 0
    level: float = math.inf
    """Requests that may come at once; below 0 after a batch call of more than the burst."""
    at: float = 0.0
    """When `level` was right."""
    calls: int = 0
    requests: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Calls and requests refused over a limit, `rate` or `concurrency`, and calls without their `scope`."""


class Access:
    """Admits callers by their tokens; none until `replace` has set some. For one event loop."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._clock = clock
        self._now = now
        self._digests: tuple[tuple[bytes, str, Grant], ...] = ()
        self.usage: dict[str, Usage] = {}
        """By name."""
        self.turned_away: Counter[str] = Counter()
        """Calls without a token that is good: `missing`, `unknown` or `expired`."""

    def replace(self, grants: dict[str, Grant]) -> None:
        """Replace the valid names and tokens. Open calls continue."""
        self._digests = tuple(
            (bytes.fromhex(digest), name, grant) for name, grant in grants.items() for digest in grant.sha256
        )
        self.usage = {name: self.usage.get(name, Usage()) for name in grants}

    def enter(self, authorization: str | None, requests: int = 1, scope: Scope | None = None) -> Visit:
        """Admit a call with this `authorization` that needs this `scope`, and charge it for its requests.

        Raises UnauthenticatedError, in the same words for every reason, PermissionDeniedError or QuotaError.
        """
        name, grant = self._known(authorization)
        usage = self.usage[name]
        usage.calls += 1
        if scope is not None and scope not in grant.scopes:
            usage.refused["scope"] += 1
            raise PermissionDeniedError(f"this token lacks the scope `{scope}`: use another, or have it added")
        most = grant.concurrent_calls
        if most is not None and usage.open >= most:
            usage.refused["concurrency"] += 1
            raise QuotaError(f"{most} calls are open, which is the limit of this token", _CONCURRENCY_RETRY)
        visit = Visit(name, grant, usage, self._clock)
        visit.charge(requests)
        return visit

    def _known(self, authorization: str | None) -> tuple[str, Grant]:
        if authorization is None or not authorization[: len(_SCHEME)].lower() == _SCHEME:
            raise self._turned_away("missing")
        digest = digest_of(authorization[len(_SCHEME) :].strip()[:_LONGEST_TOKEN])
        found = None
        for known, name, grant in self._digests:
            if hmac.compare_digest(known, digest):
                found = name, grant
        if found is None:
            raise self._turned_away("unknown")
        name, grant = found
        if grant.expires is not None and grant.expires <= self._now():
            raise self._turned_away("expired", name)
        return found

    def _turned_away(self, why: str, name: str | None = None) -> UnauthenticatedError:
        self.turned_away[why] += 1
        log.debug("caller turned away", why=why, token=name)
        return UnauthenticatedError(f"send a valid token in the metadata, as `{AUTHORIZATION_KEY}: Bearer …`")


class Visit:
    """One admitted call; a context manager that lasts as long as the call."""

    __slots__ = ("_clock", "_grant", "_token", "_usage", "name")

    def __init__(self, name: str, grant: Grant, usage: Usage, clock: Callable[[], float]) -> None:
        self.name = name
        self._grant = grant
        self._usage = usage
        self._clock = clock
        self._token: Token[Visit | None] | None = None

    def charge(self, requests: int) -> None:
        """Count so many requests. Raises QuotaError if the rate does not allow them now.

        More at once than the burst are allowed when the burst is full, and paid back afterwards.
        """
        usage, rate = self._usage, self._grant.requests_per_second
        if rate is not None and requests:
            burst = self._grant.burst or max(rate, 1.0)
            now = self._clock()
            level = min(burst, usage.level + (now - usage.at) * rate)
            needed = min(requests, burst)
            if needed - level > _ROUNDING:
                usage.level, usage.at = level, now
                usage.refused["rate"] += requests
                raise QuotaError(f"this token may send {rate:g} requests a second", (needed - level) / rate)
            usage.level, usage.at = level - requests, now
        usage.requests += requests

    def __enter__(self) -> Self:
        self._usage.open += 1
        self._token = _visit.set(self)
        # Every log line of this call then has the token's name.
        structlog.contextvars.bind_contextvars(token=self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._usage.open -= 1
        if self._token is not None:
            _visit.reset(self._token)


def charge(requests: int) -> None:
    """Charge the call that is being answered so many requests; nothing where no tokens are asked for.

    Raises QuotaError if its token does not allow them now.
    """
    visit = _visit.get()
    if visit is not None:
        visit.charge(requests)


def read_grants(contents: Sequence[bytes]) -> dict[str, Grant]:
    """The tokens file: a TOML table for each name. Raises StartError; no digest is repeated in its words."""
    (content,) = contents
    try:
        tables = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise StartError(f"RECOMMENDER_TOKENS_FILE is not TOML: {error}") from error
    grants: dict[str, Grant] = {}
    named: dict[str, str] = {}
    for name, table in tables.items():
        try:
            grant = grants[name] = Grant.model_validate(table)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, (name, *first["loc"])))
            raise StartError(f"RECOMMENDER_TOKENS_FILE, {where}: {first['msg']}") from error
        for digest in grant.sha256:
            if digest in named:
                raise StartError(f"RECOMMENDER_TOKENS_FILE: {named[digest]} and {name} have the same token")
            named[digest] = name
    return grants


def new_token() -> str:
    """A new token: 256 random bits, and a prefix by which scanners of leaked secrets recognise it."""
    return f"rcm_{secrets.token_urlsafe(32)}"


def digest_of(token: str) -> bytes:
    """The SHA-256 by which a token is known."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def authorization_of(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Get the `authorization` that the caller sent."""
    for key, value in metadata:
        if key == AUTHORIZATION_KEY and isinstance(value, str):
            return value
    return None
