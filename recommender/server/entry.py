"""The first lines of a process, before its imports: standard files and signals. Imports next to nothing."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_MODES = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_WRONLY, "w"), ("stderr", os.O_WRONLY, "w"))


def open_standard_files() -> None:
    """Open `/dev/null` where descriptor 0, 1 or 2 is closed.

    Else the next socket gets its number, and whatever prints writes into it.
    """
    for number, (name, flags, mode) in enumerate(_MODES):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)  # noqa: FBT003 (positional only)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (a descriptor)


def end_on_signals() -> None:
    """End this process with exit code 0 on SIGTERM or SIGINT, from now until the server handles them.

    Nothing has begun by then that would have to end. As process 1 of a container it would not even see them.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)  # an exception could be lost in whatever is imported now
