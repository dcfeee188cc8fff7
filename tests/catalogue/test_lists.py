"""Lists of hidden items: what is read of a file and of a web server, and what refuses a list."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recommender.catalogue.availability import lists
from recommender.catalogue.availability.followed import FollowedList
from recommender.catalogue.availability.lists import KeyList, key_list
from recommender.catalogue.availability.opening import open_list
from recommender.errors import StartError
from tests.support.hiding import write_list

PATIENCE = 30.0


@dataclass
class Site:
    """A web server with one list, and what it was asked."""

    url: str = ""
    content: bytes = b"first\nsecond\n"
    tag: str = '"1"'
    status: int = 200
    kind: str = "text/plain"
    asked: list[dict[str, str]] = field(default_factory=list)
    given: int = 0
    answered: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    async def has_answered(self, *statuses: int) -> None:
        """Wait until it has answered with each of these, in turn."""
        for status in statuses:
            while await asyncio.to_thread(self.answered.get, timeout=PATIENCE) != status:
                pass


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.asked.append({name.lower(): value for name, value in self.headers.items()})
            unchanged = bool(found.tag) and self.headers["if-none-match"] == found.tag
            self.send_response(304 if unchanged else found.status)
            content = b"" if unchanged else found.content
            found.given += len(content)
            if not unchanged:
                self.send_header("content-length", str(len(content)))
                self.send_header("content-type", found.kind)
            if found.status == 302:
                self.send_header("location", "/elsewhere")
            if found.tag:
                self.send_header("etag", found.tag)
            self.end_headers()
            self.wfile.write(content)
            found.answered.put(304 if unchanged else found.status)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://keeper:secret%2F1@127.0.0.1:{server.server_port}/hidden.txt?signature=private"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def keys_of(listed: KeyList) -> list[str]:
    return [key for part in listed.parts() for key in part]


def test_a_list_has_a_key_on_each_line_whatever_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_PART_BYTES", 8)
    content = "\ufeffone\r\n\n two \nthé\n#4\n" + "\n".join(f"key {number}" for number in range(20))

    assert keys_of(key_list(content.encode(), "here")) == [
        "one",
        " two ",
        "thé",
        "#4",
        *(f"key {n}" for n in range(20)),
    ]
    assert keys_of(key_list(b"", "here")) == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"one\ntwo\nth\xff", "hidden.txt, line 3, is not UTF-8"), (b"\n" * 1_000_001, "more than 1,000,000 lines")],
)
def test_what_is_no_list_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "hidden.txt"
    path.write_bytes(content)
    source = open_list(str(path))
    assert source is not None
    with pytest.raises(StartError, match=sentence):
        source.read(None)


def test_a_file_is_read_again_only_where_it_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hidden.txt"
    write_list(path, ["one"])
    source = open_list(str(path))
    assert source is not None
    young = source.read(None)
    assert young is not None
    listed, mark = young

    assert keys_of(listed) == ["one"]
    # Just written, it may be written again at the same time by the clock of its system.
    assert source.read(mark) is not None
    monkeypatch.setattr(lists, "_YOUNG_NS", 0)
    old = source.read(mark)
    assert old is not None
    assert source.read(old[1]) is None
    os.utime(path, ns=(0, 0))
    assert source.read(old[1]) is not None
    path.unlink()
    with pytest.raises(StartError, match=r"\(hidden items\) cannot be read: No such file"):
        source.read(old[1])


def test_a_list_on_the_web_is_sent_only_where_its_tag_is_another(site: Site) -> None:
    source = open_list(site.url)
    assert source is not None
    first = source.read(None)
    assert first is not None

    assert keys_of(first[0]) == ["first", "second"]
    assert source.read(first[1]) is None
    site.content, site.tag = b"third", '"2"'
    second = source.read(first[1])
    assert second is not None
    assert (keys_of(second[0]), second[1]) == (["third"], '"2"')
    assert site.given == len(b"first\nsecond\nthird")
    assert {ask["authorization"] for ask in site.asked} == {"Basic a2VlcGVyOnNlY3JldC8x"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": 500}, "answers with status 500"),
        ({"status": 302}, "answers with status 302 to another place: name that"),
        ({"kind": "text/html; charset=utf-8"}, "answers with a page"),
        ({"content": b"x" * 5000}, "MiB, the most that a list may have"),
    ],
)
def test_an_answer_that_is_no_list_hides_and_shows_nothing(
    site: Site, changes: dict[str, object], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recommender.catalogue.availability.remote.MOST_BYTES", 4096)
    for name, value in changes.items():
        setattr(site, name, value)
    source = open_list(site.url)
    assert source is not None
    with pytest.raises(StartError, match=sentence) as refused:
        source.read(None)

    assert "secret" not in str(refused.value)
    assert "private" not in str(refused.value)


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    source = open_list("http://keeper:secret@127.0.0.1:1/hidden.txt")
    assert source is not None
    with pytest.raises(
        StartError, match=r"http://\*\*\*@127.0.0.1:1/hidden.txt \(hidden items\) cannot be asked"
    ) as refused:
        source.read(None)

    assert "secret" not in str(refused.value)


async def test_a_list_that_cannot_be_read_any_more_stays_in_force(site: Site) -> None:
    used: asyncio.Queue[list[str]] = asyncio.Queue()

    async def use(listed: KeyList) -> None:
        used.put_nowait(keys_of(listed))

    source = open_list(site.url)
    assert source is not None
    followed = FollowedList(source, use, every=0.01, patience=PATIENCE)
    await followed.start()
    try:
        async with asyncio.timeout(PATIENCE):
            assert await used.get() == ["first", "second"]
            site.status, site.tag = 503, ""
            await site.has_answered(503, 503)
            assert (followed.stale, used.empty()) == (True, True)
            site.status, site.tag, site.content = 200, '"3"', b"fourth"
            assert await used.get() == ["fourth"]
            await site.has_answered(304, 304)
            assert not followed.stale
    finally:
        await followed.close()


async def test_a_server_does_not_start_without_its_list(tmp_path: Path) -> None:
    async def use(_: KeyList) -> None:
        raise AssertionError("there is no list")

    source = open_list(str(tmp_path / "none.txt"))
    assert source is not None
    with pytest.raises(StartError, match="cannot be read"):
        await FollowedList(source, use, every=1.0, patience=PATIENCE).start()
