"""The proof of a version in a process of its own, before the one that serves takes it in.

The other process opens the files as the server would, holds the model to its card and its limits, and measures it.
Its priority is low from its first moment, so that requests go first. What hangs, crashes or fills the memory does so
over there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence

from recommender.batching.cost import Observation
from recommender.errors import ModelError

_BELOW = 10
"""How much lower its priority is than ours: a tenth of a core remains where requests take all of it."""
_LOWEST = 19


async def check_elsewhere(command: Sequence[str], environment: Mapping[str, str], timeout: float) -> list[Observation]:
    """Run a command that proves a version, with this environment over our own, and return what it measured.

    The command is `recommender models verify … --json`. Raises ModelError with its reason if it refuses the version,
    does not end within `timeout` seconds, or is killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, process.pid, min(os.getpriority(os.PRIO_PROCESS, 0) + _BELOW, _LOWEST))
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate()
    except TimeoutError:
        raise ModelError(f"its proof did not end within {timeout:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ModelError(_reason(process.returncode or 0, err.decode(errors="replace")))
    try:
        return [Observation(*each) for each in json.loads(out)["observations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"its proof ended with an answer that is none: {out[:200]!r}") from error


def _reason(code: int, err: str) -> str:
    if code < 0:
        return (
            f"its proof was killed by {signal.Signals(-code).name}: it crashes ONNX Runtime, or takes too much memory"
        )
    lines = [line for line in err.splitlines() if line.strip()]
    last = lines[-1] if lines else f"its proof ended with exit code {code} and said nothing"
    return last.removeprefix("recommender: ")
