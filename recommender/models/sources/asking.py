"""The process that asks a registry for `remote.RemoteRegistry`: `python -m recommender.models.sources.asking`."""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recommender.errors import ModelError, SourceError
from recommender.models.sources.mlflow import Registry
from recommender.models.sources.remote import facts_of, registered_of

_MOST_BYTES = 512 << 20
"""Memory for answers and downloads beyond what is taken at the start."""


def main() -> None:
    """Answer the lines on standard input, until it ends; work in progress ends with it."""
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            asked.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()

    def tell(**answer: object) -> None:
        os.write(out, json.dumps(answer).encode() + b"\n")

    registry: Registry | None = None
    while True:
        told = json.loads(asked.get())
        try:
            if registry is None:
                registry = Registry(told["uri"])
                _limit_memory()
                tell(result=None)
            else:
                tell(result=_answer(registry, told, lambda done, total: tell(progress=[done, total])))
        except MemoryError:
            tell(error="SourceError", reason="its answer takes too much memory")
            os._exit(1)
        except (ModelError, SourceError) as error:
            tell(error=type(error).__name__, reason=str(error))
        except OSError as error:
            tell(error="OSError", reason=error.strerror or str(error), number=error.errno)
        except Exception as error:  # noqa: BLE001 (this process only asks: its caller decides what follows)
            tell(error="SourceError", reason=f"the registry's client failed: {error!r}"[:500])


def _answer(registry: Registry, told: Mapping[str, Any], progress: Callable[[int, int], None]) -> object:
    match told["method"], told["arguments"]:
        case "version", [name, version]:
            return facts_of(registry.version(name, version))
        case "by_alias", [name, alias]:
            return facts_of(registry.by_alias(name, alias))
        case "download", [registered, folder]:
            registry.download(registered_of(registered), Path(folder), progress)
            return None
        case unknown:
            raise SourceError(f"{unknown} is no question")


def _limit_memory() -> None:
    if sys.platform != "linux":
        return
    taken = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmData:")
    )
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (taken + _MOST_BYTES, hard))


if __name__ == "__main__":
    main()
