"""The proof of a version in another process, before the server loads it.

That process opens the files as the server would, checks the model against its card and its limits, and measures it. Its
priority is low from the start, so that requests go first. A model that hangs, crashes or fills the memory does so
there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from recommender.batching.cost import Observation
from recommender.errors import ModelError
from recommender.models.artifact import Artifact
from recommender.models.version import Version

_BELOW = 10
"""How much lower its priority is than ours: a tenth of a core remains where requests take all of it."""
_LOWEST = 19


class Proof(BaseModel):
    """Results of the checks of a version that may serve; `recommender models verify --json` prints them.

    `golden` counts golden answers, `vocabulary` keys of items, `user_vocabulary` keys of users, `type_vocabulary` keys
    of types of events, `features` inputs that the card declares, and `fallback` items of the fallback list.
    `event_loop` names the library of the loop that batches were measured on. `observations` are rows, cells and seconds
    of each batch.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    sha256: str
    items: int | None
    provider: str
    golden: int
    vocabulary: int
    user_vocabulary: int = 0
    type_vocabulary: int = 0
    features: int = 0
    fallback: int
    event_loop: str
    observations: tuple[tuple[int, int, float], ...]

    @classmethod
    def of(cls, version: Version, artifact: Artifact) -> Self:
        """The proof of a version that was loaded from an artifact on the running event loop."""
        return cls(
            model=version.label,
            sha256=version.sha256,
            items=version.model.items,
            provider=version.execution_provider,
            golden=len(artifact.card.golden) if artifact.card else 0,
            vocabulary=len(version.vocabulary) if version.vocabulary else 0,
            user_vocabulary=len(version.user_vocabulary) if version.user_vocabulary else 0,
            type_vocabulary=len(version.type_vocabulary) if version.type_vocabulary else 0,
            features=len(version.model.features),
            fallback=len(version.fallback),
            event_loop=type(asyncio.get_running_loop()).__module__.partition(".")[0],
            observations=tuple((seen.rows, seen.cells, seen.seconds) for seen in version.measured),
        )

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse the output of `recommender models verify --json`; raises ModelError if it is not a proof."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ModelError(f"its proof printed no valid result: {text[:200]!r}") from error

    def to_json(self) -> str:
        """The output of `recommender models verify --json`."""
        return self.model_dump_json(indent=2)

    @property
    def measured(self) -> list[Observation]:
        """Times of measured batches."""
        return [Observation(*each) for each in self.observations]


async def check_elsewhere(command: Sequence[str], environment: Mapping[str, str], timeout: float) -> list[Observation]:
    """Run a command that proves a version, with `environment` over this process's own; return what it measured.

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
    return Proof.from_json(out).measured


def _reason(code: int, err: str) -> str:
    if code < 0:
        return (
            f"its proof was killed by {signal.Signals(-code).name}: it crashes ONNX Runtime, or takes too much memory"
        )
    lines = [line for line in err.splitlines() if line.strip()]
    last = lines[-1] if lines else f"its proof ended with exit code {code} and said nothing"
    return last.removeprefix("recommender: ")
