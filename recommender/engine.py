"""The engine: one ONNX Runtime session, its execution provider, and the threads it runs on."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from recommender.contract import Contract, Port
from recommender.cost import Observation
from recommender.domain import Device, Model, Query, Ranking
from recommender.errors import InvalidRequestError, ModelError, ProviderError, Violation
from recommender.store import Artifact

_PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
_INSTALL = {
    "cuda": "install the GPU build with `just setup-cuda` on a machine with an NVIDIA driver",
    "coreml": "CoreML comes with the macOS build of onnxruntime only",
    "cpu": "reinstall onnxruntime",
}
_WARM_UP_REPEATS = 3
_WARM_UP_LENGTH = 32
_QUIETEST = 4  # ONNX Runtime's own log says nothing that the errors it raises do not say.
_JOIN_SECONDS = 2.0

R = TypeVar("R")


class OnnxEngine:
    """Runs one model. Runs happen on the engine's own threads, `slots` at once; the event loop never waits.

    `threads` is how many CPUs one run uses; 0 shares the CPUs of this process out among the slots.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: Device = "auto",
        threads: int = 0,
        spinning: bool = False,
        slots: int = 1,
    ) -> None:
        refuse_two_runtimes()
        self.provider = choose_provider(device, onnxruntime.get_available_providers())
        self.threads = threads or max(available_cpus() // slots, 1)
        self._session = _session(artifact.path, self.provider, self.threads, spinning=spinning)
        used = self._session.get_providers()[0]
        if used != self.provider:
            raise ProviderError(f"{self.provider} was chosen and ONNX Runtime fell back to {used}; {_INSTALL['cuda']}")
        self.contract = Contract.of(_ports(self._session.get_inputs()), _ports(self._session.get_outputs()))
        self.model = self._describe(artifact)
        self._artifact = artifact
        self._outputs = ["recommendations", "scores"] if self.contract.batched else ["recommendations"]
        self._threads = _Threads(slots)
        self._active: set[onnxruntime.RunOptions] = set()

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """Rank for every query, in their order, on the engine's own thread.

        Raises InvalidRequestError if the only query holds an id that the model does not have, and what ONNX
        Runtime raises if the run failed. A cancelled call does not end the run; `terminate` does.
        """
        return await self._threads.call(self._rank, queries)

    def terminate(self) -> None:
        """Ask every run under way to end at the next node of its graph; returns at once."""
        for options in tuple(self._active):
            options.terminate = True

    async def warm_up(self, max_batch_size: int) -> list[Observation]:
        """Hold the model to its card's golden answers, and measure batches up to `max_batch_size` rows.

        Raises ModelError if an answer differs or a run fails.
        """
        try:
            await self._check_golden()
            return await self._measure(max_batch_size)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{self._artifact.path} loads but does not run: {error}") from error

    def close(self) -> bool:
        """End the threads; False if one is stuck in a run."""
        self.terminate()
        return self._threads.close()

    def _rank(self, queries: Sequence[Query]) -> list[Ranking]:
        options = onnxruntime.RunOptions()
        options.log_severity_level = _QUIETEST
        self._active.add(options)
        try:
            if self.contract.batched:
                outputs = self._session.run(self._outputs, self.contract.pack(queries), options)
                return self.contract.unpack(outputs, queries)
            return [
                self.contract.unpack_alone(
                    self._session.run(self._outputs, self.contract.pack_alone(query), options), query
                )
                for query in queries
            ]
        except runtime_errors.InvalidArgument as error:
            # Only the model knows its catalogue where no card tells it: there a Gather finds the stranger.
            if self.model.items is None and len(queries) == 1 and "out of data bounds" in str(error):
                raise InvalidRequestError(
                    Violation("item_ids", f"an id is not in the catalogue; the largest is {max(queries[0].history)}")
                ) from error
            raise
        finally:
            self._active.discard(options)

    async def _check_golden(self) -> None:
        card = self._artifact.card
        if card is None or not card.golden:
            return
        queries = [Query(golden.item_ids, len(golden.recommendations)) for golden in card.golden]
        batched = await self.run(queries)
        for golden, query, in_company in zip(card.golden, queries, batched, strict=True):
            expected = Ranking(list(golden.recommendations), list(golden.scores))
            for ranking in (in_company, *await self.run([query])):
                if not ranking.equals(expected, card.score_tolerance):
                    raise ModelError(
                        f"{self._artifact.path} does not give its card's answer: for {list(golden.item_ids)} it ranks "
                        f"{ranking.item_ids} and the card says {expected.item_ids}; export the model again"
                    )

    async def _measure(self, max_batch_size: int) -> list[Observation]:
        length = min(self.model.longest_history or _WARM_UP_LENGTH, _WARM_UP_LENGTH)
        seen = []
        for rows in sorted({1, max(max_batch_size // 4, 1), max_batch_size}):
            for items in sorted({1, length}):
                queries = [Query((0,) * items, self.model.default_k)] * rows
                await self.run(queries)  # the first run of a shape allocates
                seconds = []
                for _ in range(_WARM_UP_REPEATS):
                    started = time.perf_counter()
                    await self.run(queries)
                    seconds.append(time.perf_counter() - started)
                seen.append(Observation(rows, rows * items, statistics.median(seconds)))
        return seen

    def _describe(self, artifact: Artifact) -> Model:
        card = artifact.card
        if card is not None:
            if not self.contract.takes_k and card.max_k > card.default_k:
                raise ModelError(
                    f"the card of {artifact.path} promises up to {card.max_k} recommendations, and the model has no "
                    f"input k to ask for more than {card.default_k}; export the model again"
                )
            return Model(
                card.name, card.version, card.items, card.default_k, card.max_k, card.longest_history,
                card.score_tolerance,
            )  # fmt: skip
        return self._describe_bare(artifact)

    def _describe_bare(self, artifact: Artifact) -> Model:
        told = _told(self._session.get_modelmeta().custom_metadata_map, artifact.path)
        default_k = told.get("default_k") or self._fixed_k() or _k_of_file(artifact.path)
        if default_k is None:
            raise ModelError(
                f"{artifact.path} has no card, and neither its metadata nor its output says how many recommendations "
                "it gives; export it with `recommender export`, or name it {K}_model.onnx"
            )
        max_k = told.get("max_k", default_k) if self.contract.takes_k else default_k
        return Model(
            artifact.name,
            artifact.version,
            told.get("items"),
            default_k,
            max_k,
            told.get("longest_history"),
            0.0,
        )

    def _fixed_k(self) -> int | None:
        shape = self._session.get_outputs()[0].shape
        return shape[-1] if isinstance(shape[-1], int) else None


def available_cpus() -> int:
    """How many CPUs this process may use: its affinity, or its cgroup's quota where that is less."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cpus = min(cpus, max(int(quota) // int(period), 1))
    return cpus


def choose_provider(device: Device, available: Sequence[str]) -> str:
    """The execution provider for a device; `auto` is CUDA where ONNX Runtime has it, else the CPU.

    CoreML is taken by name only: it has no TopK, so the scores of the whole catalogue would cross back.
    Raises ProviderError if the device was named and its provider is not there.
    """
    if device == "auto":
        return _PROVIDERS["cuda"] if _PROVIDERS["cuda"] in available else _PROVIDERS["cpu"]
    if _PROVIDERS[device] not in available:
        raise ProviderError(
            f"RECOMMENDER_DEVICE is {device}, and this ONNX Runtime has {', '.join(available)} and no "
            f"{_PROVIDERS[device]}: {_INSTALL[device]}, or set RECOMMENDER_DEVICE=auto"
        )
    return _PROVIDERS[device]


def refuse_two_runtimes() -> None:
    """Raise ProviderError if both builds of ONNX Runtime are installed: they overwrite each other's files."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    if len(found) > 1:
        raise ProviderError(
            f"{' and '.join(found)} are both installed and share one module, so which one runs is chance: "
            "make the environment anew with `just setup` (CPU) or `just setup-cuda` (GPU)"
        )


def _session(path: Path, provider: str, threads: int, *, spinning: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIETEST
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}; copy or export the file again"
        ) from error


def _ports(nodes: Sequence[onnxruntime.NodeArg]) -> dict[str, Port]:
    return {node.name: Port(node.type, len(node.shape)) for node in nodes}


def _told(metadata: dict[str, str], path: Path) -> dict[str, int]:
    """The whole numbers that the model's own metadata gives."""
    told = {}
    for key in ("items", "default_k", "max_k", "longest_history"):
        text = metadata.get(f"recommender.{key}", "")
        if text:
            if not text.isdecimal():
                raise ModelError(f"{path} says in its metadata that recommender.{key} is {text!r}, not a whole number")
            told[key] = int(text)
    return told


def _k_of_file(path: Path) -> int | None:
    number = path.name.removesuffix("_model.onnx")
    return int(number) if number != path.name and number.isdecimal() and int(number) > 0 else None


class _Threads:
    """A few daemon threads that do calls for an event loop: a stuck one keeps nobody from leaving."""

    def __init__(self, count: int) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def call(self, function: Callable[[Sequence[Query]], R], queries: Sequence[Query]) -> R:
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
            if future.cancelled():
                return
            try:
                result, error = function(queries), None
            except BaseException as raised:  # noqa: BLE001 (the caller gets whatever it was)
                result, error = None, raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(settle, result, error)

        self._calls.put(work)
        return await future

    def close(self) -> bool:
        for _ in self._threads:
            self._calls.put(None)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
