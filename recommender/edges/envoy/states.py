"""How far a call over ASGI is, in each direction, and which moves are legal."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Request(enum.IntEnum):
    """How far the request is."""

    UNREAD = enum.auto()
    AWAITED = enum.auto()
    """Its one message is being received, which must not be cancelled."""
    STREAMED = enum.auto()
    """Its messages are being received."""
    READ = enum.auto()
    """Nothing more is received, so the call may ask whether its caller has left."""
    ASKED = enum.auto()
    """That question is open."""
    LATE = enum.auto()
    """Its deadline has passed."""
    LEFT = enum.auto()
    """Its caller has left."""


class Reply(enum.IntEnum):
    """How far the reply is."""

    NONE = enum.auto()
    BEGUN = enum.auto()
    """Headers are sent, and perhaps messages."""
    ENDED = enum.auto()
    """The end is on its way or sent; a sweep ends it no more."""


REQUEST_MOVES: Mapping[Request, frozenset[Request]] = {
    Request.UNREAD: frozenset({Request.AWAITED, Request.STREAMED, Request.LATE}),
    Request.AWAITED: frozenset({Request.READ, Request.LATE}),
    Request.STREAMED: frozenset({Request.READ, Request.LATE}),
    Request.READ: frozenset({Request.ASKED, Request.LATE}),
    Request.ASKED: frozenset({Request.READ, Request.LATE, Request.LEFT}),
    Request.LATE: frozenset({Request.LEFT}),
    Request.LEFT: frozenset(),
}
REPLY_MOVES: Mapping[Reply, frozenset[Reply]] = {
    Reply.NONE: frozenset({Reply.BEGUN, Reply.ENDED}),
    Reply.BEGUN: frozenset({Reply.ENDED}),
    Reply.ENDED: frozenset(),
}
