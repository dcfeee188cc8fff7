"""A registry that a separate process asks: one that hangs, drips, or answers without end is killed.

A thread in MLflow's client can neither be ended nor bounded in what it reads. The process speaks JSON, one object a
line: it gets the URI and then calls, and answers each with a result or an error. It ends when its standard input does,
so it never outlives its parent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from recommender.errors import ModelError, SourceError, SourceTimeoutError
from recommender.models.sources.mlflow import Registered
from recommender.models.sources.source import Progress
from recommender.settings.masking import masked

_MODULE = "recommender.models.sources.asking"
Facts: TypeAlias = Mapping[str, Any]
"""An answer, or a registered version, as JSON has it."""

_START_SECONDS = 60.0
"""MLflow's client takes seconds to import on a busy machine."""
_LONGEST_ANSWER = 1 << 20
_PIECE = 1 << 16


class Lookup(Protocol):
    """The queries of a source to a registry. Methods raise ModelError and SourceError as `Registry`'s do."""

    @property
    def address(self) -> str:
        """Its URI, without name and password."""

    def version(self, name: str, version: str) -> Registered:
        """A version by its number."""

    def by_alias(self, name: str, alias: str) -> Registered:
        """The version of an alias."""

    def download(self, registered: Registered, folder: Path, progress: Progress) -> None:
        """Put the files of a version into a folder."""

    def close(self) -> None:
        """Ask it no longer."""


class RemoteRegistry:
    """The registry at a tracking URI, asked by a process that is started now. Every method blocks.

    A question may take `patience` seconds and a download `longest`; then the process is killed and another is started.
    Calls wait for each other.
    """

    def __init__(self, uri: str, *, patience: float, longest: float) -> None:
        self.address = masked(uri)
        self._uri = uri
        self._patience = patience
        self._longest = longest
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._closed = False
        with self._lock:
            self._started()

    def version(self, name: str, version: str) -> Registered:
        """A version by its number. Raises ModelError and SourceError as `Registry.version` does."""
        return registered_of(self._ask("version", self._patience, name, version))

    def by_alias(self, name: str, alias: str) -> Registered:
        """The version of an alias. Raises as `version` does."""
        return registered_of(self._ask("by_alias", self._patience, name, alias))

    def download(self, registered: Registered, folder: Path, progress: Progress) -> None:
        """Put the files of a version into a folder. Raises as `version` does."""
        self._ask("download", self._longest, facts_of(registered), str(folder), progress=progress)

    def close(self) -> None:
        """End the process; later calls raise SourceError, and so does a call under way. A second call is a no-op."""
        self._closed = True
        process = self._process
        if process is None:
            return
        process.kill()
        if self._lock.acquire(blocking=False):  # else the call under way sees the end and cleans up
            self._process = None
            process.end()
            self._lock.release()

    def _ask(self, method: str, seconds: float, *arguments: object, progress: Progress = lambda *_: None) -> Facts:
        if not self._lock.acquire(timeout=seconds):
            raise SourceTimeoutError(f"{self.address} still hangs in an earlier call")
        try:
            process = self._started()
            try:
                return process.ask({"method": method, "arguments": arguments}, seconds, progress)
            except _LostError as error:
                process.end()
                # At once: MLflow's client takes seconds to import, and the next question comes soon.
                self._process = _Process(self._uri)
                if self._closed:
                    self._process.end()
                raise error.told(self.address) from error
        finally:
            self._lock.release()

    def _started(self) -> _Process:
        if self._closed:
            raise SourceError(f"{self.address} is asked no longer: the server ends")
        process = self._process
        if process is None or process.has_ended:
            if process is not None:
                process.end()
            process = self._process = _Process(self._uri)
        try:
            process.wait_until_ready()
        except BaseException as error:
            self._process = None
            process.end()
            if isinstance(error, _LostError):
                raise error.told(self.address) from error
            raise
        return process


class _LostError(Exception):
    """The process has to be ended; `reason` says why, None if it did not answer in time."""

    def __init__(self, reason: str | None, seconds: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seconds = seconds

    def told(self, address: str) -> SourceError:
        if self.reason is None:
            return SourceTimeoutError(f"{address} did not answer within {self.seconds:g} s")
        return SourceError(f"{address} cannot be asked: {self.reason}")


class _Process:
    """The process that asks. It gets the URI at once, and imports MLflow's client meanwhile."""

    def __init__(self, uri: str) -> None:
        self._ready = False
        try:
            self._process = subprocess.Popen(  # noqa: S603 (this very program)
                (sys.executable, "-m", _MODULE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what MLflow logs is in its errors
                bufsize=0,
                start_new_session=True,  # a Ctrl-C in the terminal is not for it
            )
        except OSError as error:
            raise SourceError(f"the registry's client cannot be started: {error.strerror or error}") from error
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("it is started with pipes")
        self._in, self._out = self._process.stdin, self._process.stdout
        self._tell({"uri": uri})

    def wait_until_ready(self) -> None:
        """Raise ModelError or SourceError if the URI is not a registry's, _LostError if it takes too long."""
        if not self._ready:
            self._answer(_START_SECONDS, lambda *_: None)
            self._ready = True

    def ask(self, told: Mapping[str, object], seconds: float, progress: Progress) -> Facts:
        """Send an object and return the result; raises ModelError, SourceError, OSError or _LostError."""
        self._tell(told)
        return self._answer(seconds, progress)

    def _tell(self, told: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):  # it has ended, which reading its answer finds out
            self._in.write(json.dumps(told).encode() + b"\n")

    def _answer(self, seconds: float, progress: Progress) -> Facts:
        deadline = time.monotonic() + seconds
        for line in self._lines(deadline, seconds):
            try:
                answer = json.loads(line)
            except ValueError as error:
                raise _LostError("its client wrote an invalid answer", seconds) from error
            if "progress" in answer:
                progress(*answer["progress"])
            elif answer.get("error") == "OSError":
                raise OSError(answer["number"], answer["reason"])
            elif "error" in answer:
                raise _ERRORS[answer["error"]](answer["reason"])
            else:
                return answer["result"] or {}
        raise _LostError("its client has ended, perhaps for lack of memory", seconds)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Kill it and close its pipes: no question may be in progress."""
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()

    def _lines(self, deadline: float, seconds: float) -> Iterator[bytes]:
        """The lines that it writes, until it ends."""
        number = self._out.fileno()
        ready = select.poll()
        ready.register(number, select.POLLIN)
        waiting = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not ready.poll(left * 1e3):  # progress does not prolong it
                raise _LostError(None, seconds)
            piece = os.read(number, _PIECE)
            if not piece:
                return
            waiting += piece
            *lines, waiting = waiting.split(b"\n")
            yield from lines
            if len(waiting) > _LONGEST_ANSWER:
                raise _LostError("its answer is too long", seconds)


_ERRORS: Mapping[str, Callable[[str], Exception]] = {"ModelError": ModelError, "SourceError": SourceError}


def facts_of(registered: Registered) -> Facts:
    """A registered version as JSON has it."""
    return dataclasses.asdict(registered) | {"created": registered.created.isoformat()}


def registered_of(facts: Facts) -> Registered:
    """The registered version that these are the facts of."""
    created, aliases = datetime.fromisoformat(facts["created"]), tuple(facts["aliases"])
    return Registered(**{**facts, "created": created, "aliases": aliases})
