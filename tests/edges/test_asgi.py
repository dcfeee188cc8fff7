"""The edge behind Envoy through ASGI: its reaction to a server whose caller is late or leaves."""

from __future__ import annotations

import asyncio

import pytest

from recommender.edges.calls import Calls
from recommender.edges.envoy.application import AsgiEdge
from recommender.edges.methods import Methods

TIMEOUT = 30.0
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/grpc.health.v1.Health/Check",
    "headers": [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"1m")],
}
REQUEST = {"type": "http.request", "body": bytes(5), "more_body": False}


def application() -> AsgiEdge:
    methods = Methods(Calls(), default_timeout=1.0, most_open=1, most_streams=1)
    return AsgiEdge(methods, max_message_bytes=100, max_metadata_bytes=1000)


async def test_a_call_that_was_ended_for_its_deadline_is_not_answered_when_its_request_comes_after_all() -> None:
    sent: list[dict[str, object]] = []
    ended = asyncio.Event()

    async def receive() -> dict[str, object]:
        await ended.wait()
        return REQUEST

    async def send(message: dict[str, object]) -> None:
        sent.append(message)
        if not message.get("more_body", True):
            ended.set()

    async with asyncio.timeout(TIMEOUT):
        await application()(SCOPE, receive, send)  # type: ignore[arg-type]

    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (b"grpc-status", b"4") in sent[0]["headers"]  # type: ignore[operator]


async def test_a_caller_who_has_left_when_its_call_is_ended_for_its_deadline_is_no_error() -> None:
    tried = asyncio.Event()
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def receive() -> dict[str, object]:
        await tried.wait()
        return {"type": "http.disconnect"}

    async def send(_: dict[str, object]) -> None:
        tried.set()
        raise ConnectionResetError

    async with asyncio.timeout(TIMEOUT):
        await application()(SCOPE, receive, send)  # type: ignore[arg-type]
    await asyncio.sleep(0)

    assert tried.is_set()
    assert complaints == []


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Nothing"])
async def test_an_answer_on_its_way_is_not_cut_for_its_deadline(path: str) -> None:
    sent: list[str] = []
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, later.set)  # a sweep finds the deadline passed before

    async def receive() -> dict[str, object]:
        return REQUEST

    async def send(message: dict[str, object]) -> None:
        sent.append(str(message["type"]))
        await later.wait()

    headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"40m")]
    scope = {**SCOPE, "path": path, "headers": headers}
    async with asyncio.timeout(TIMEOUT):
        await application()(scope, receive, send)  # type: ignore[arg-type]

    assert sent[:2] == ["http.response.start", "http.response.body"]


async def test_a_call_that_was_ended_for_its_deadline_is_not_ended_again_for_a_bad_request() -> None:
    sent: list[str] = []
    ended = asyncio.Event()

    async def receive() -> dict[str, object]:
        await ended.wait()
        return {"type": "http.request", "body": bytes(3), "more_body": False}  # the half of a message's head

    async def send(message: dict[str, object]) -> None:
        sent.append(str(message["type"]))
        if not message.get("more_body", True):
            ended.set()

    async with asyncio.timeout(TIMEOUT):
        await application()(SCOPE, receive, send)  # type: ignore[arg-type]

    assert sent == ["http.response.start", "http.response.body"]
