"""Calls that may block for long, on threads that keep nobody from leaving."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def in_background(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a blocking call returns or raises, from a daemon thread of its own.

    Cancelled, it leaves the thread behind: a call that hangs in native code or in a socket can neither be ended nor
    hold up the end of the process. `asyncio.to_thread` would have its thread joined at the end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        try:
            result, error = function(*args, **kwargs), None
        except BaseException as raised:  # noqa: BLE001 (the caller gets whatever it was)
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="background", daemon=True).start()
    return await future
