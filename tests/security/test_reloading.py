"""Files that are reloaded while the server runs, valid or not."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog

from recommender.errors import StartError
from recommender.security.reloading import ReloadedFiles

TIMEOUT = 30.0


def parse(contents: Sequence[bytes]) -> bytes:
    if contents[0] == b"unreadable":
        raise ZeroDivisionError("a library's own error")
    return contents[0]


async def test_whatever_one_look_raises_the_next_takes_up_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"first")
    taken: asyncio.Queue[bytes] = asyncio.Queue()

    def use(content: bytes) -> None:
        taken.put_nowait(content)
        if content == b"second":
            raise OSError("the disk is full")

    files = ReloadedFiles("secrets", [path], parse=parse, use=use, every=0.001)
    with structlog.testing.capture_logs() as logged:
        await files.start()
        async with asyncio.timeout(TIMEOUT):
            assert await taken.get() == b"first"
            path.write_bytes(b"second")
            while await taken.get() != b"second":
                pass
            path.write_bytes(b"third")
            while await taken.get() != b"third":
                pass
        await files.close()

    complaints = [event["reason"] for event in logged if event["log_level"] == "error"]
    assert complaints == ["OSError('the disk is full')"]
    assert files.used == b"third"


async def test_a_folder_that_is_swapped_by_a_link_and_removed_at_once_is_taken_up(tmp_path: Path) -> None:
    def deliver(name: str) -> None:
        """Swap the volume as cert-manager's driver does: the old files are gone as soon as the link points to the new
        ones."""
        former = volume.resolve()
        (tmp_path / name).mkdir()
        (tmp_path / name / "secret").write_text(name)
        (tmp_path / "new").symlink_to(name)
        (tmp_path / "new").replace(volume)
        if former != volume:
            shutil.rmtree(former)

    volume = tmp_path / "volume"
    deliver("first")
    taken: asyncio.Queue[bytes] = asyncio.Queue()
    files = ReloadedFiles("secrets", [volume / "secret"], parse=parse, use=taken.put_nowait, every=0.001)
    await files.start()
    async with asyncio.timeout(TIMEOUT):
        assert await taken.get() == b"first"
        for name in ("second", "third"):
            deliver(name)
            assert await taken.get() == name.encode()
    await files.close()


async def test_a_start_with_files_that_a_library_cannot_read_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"unreadable")
    files = ReloadedFiles("secrets", [path], parse=parse, use=lambda _: None, every=60.0)

    with pytest.raises(StartError, match="the files of secrets cannot be used: ZeroDivisionError"):
        await files.start()
