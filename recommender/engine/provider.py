"""Execution providers: which one a session gets, its options, and whether it does the work.

ONNX Runtime silently falls back to the CPU if a provider fails. Here every fallback is an error with a sentence, and
`auto` turns that sentence into a reason it can show.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from recommender.engine.coarse import COARSE_PART
from recommender.engine.machine import memory_growth, resident_memory
from recommender.errors import ModelError, ProviderError
from recommender.settings.engine import ArenaStrategy, CoreMLFormat, CoreMLUnits, Device

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
COREML = "CoreMLExecutionProvider"

_PROVIDERS: Mapping[Device, str] = {"cpu": CPU, "cuda": CUDA, "coreml": COREML}
_REMEDIES: Mapping[str, str] = {
    CPU: "reinstall onnxruntime",
    CUDA: "install the GPU build with `just setup-cuda` on a machine with an NVIDIA driver",
    COREML: "CoreML comes with the macOS build of onnxruntime only",
}
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""Operators that CUDA cannot capture in a graph."""
_HEAVY = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TopK"})
"""Operators that must run on the requested provider; look-ups in a table count too, by their names."""
_QUIETEST = 4  # ONNX Runtime's own log says nothing that the errors it raises do not say.
_MEGABYTE = 1 << 20
_NAMED_NODES = 5
SPIN_MICROSECONDS = 20
"""How long a thread of a run without work spins before it sleeps. ONNX Runtime's own time is tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """Options of CUDA: `memory_limit_mb` bounds its arena in MiB, 0 not at all; `tf32` rounds products."""

    device_id: int = 0
    memory_limit_mb: int = 0
    arena: ArenaStrategy = "next_power_of_two"
    graph: bool = False
    tf32: bool = False

    def as_provider_options(self) -> dict[str, str]:
        """The options by the names that ONNX Runtime has for them."""
        options = {
            "device_id": str(self.device_id),
            "arena_extend_strategy": "kSameAsRequested" if self.arena == "same_as_requested" else "kNextPowerOfTwo",
            "enable_cuda_graph": str(int(self.graph)),
            "use_tf32": str(int(self.tf32)),
        }
        if self.memory_limit_mb:
            options["gpu_mem_limit"] = str(self.memory_limit_mb * _MEGABYTE)
        return options


@dataclass(frozen=True, slots=True)
class CoreMLOptions:
    """Options of CoreML: which of the chip's units it may use, and what it compiles the graph to."""

    units: CoreMLUnits = "cpu_and_gpu"
    format: CoreMLFormat = "mlprogram"

    def as_provider_options(self) -> dict[str, str]:
        """The options by the names that ONNX Runtime has for them."""
        units = {
            "all": "ALL",
            "cpu_and_gpu": "CPUAndGPU",
            "cpu_and_neural_engine": "CPUAndNeuralEngine",
            "cpu_only": "CPUOnly",
        }
        return {
            "MLComputeUnits": units[self.units],
            "ModelFormat": "MLProgram" if self.format == "mlprogram" else "NeuralNetwork",
        }


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """How a session is built: `threads` CPUs a run, and the options of each provider.

    `table_look_ups` names the nodes that read rows of the item table; they may not run on the CPU if another provider
    was requested; nodes that compute shapes may. `pinned` fixes dimensions of the inputs by their names, so that ONNX
    Runtime computes at load what depends on nothing else. With `memory_patterns` the CPU's runs keep a memory plan for
    each shape of the inputs: microseconds quicker, and megabytes for a large model.
    """

    threads: int
    spinning: bool = False
    cuda: CudaOptions = CudaOptions()
    coreml: CoreMLOptions = CoreMLOptions()
    table_look_ups: frozenset[str] = frozenset()
    pinned: Mapping[str, int] = field(default_factory=dict)
    memory_patterns: bool = True


@dataclass(frozen=True, slots=True)
class Opened:
    """A session and its provider; `fallback_reason` says why that is not the first choice of `auto`.

    `loaded` is the growth of the process in bytes, None if unknown.
    """

    session: onnxruntime.InferenceSession
    provider: str
    loaded: int | None
    fallback_reason: str | None = None


def open_for_device(path: Path, device: Device, plan: SessionPlan) -> Opened:
    """Load a model on the device that was asked for.

    Raises ProviderError if the device was named and is not to be had, or does only part of the work;
    `auto` takes the CPU then and says why. Raises ModelError if ONNX Runtime cannot load the file.
    """
    refuse_two_runtimes()
    preferred = choose_provider(device, onnxruntime.get_available_providers())
    try:
        return open_session(path, preferred, plan)
    except ProviderError as error:
        if device != "auto" or preferred == CPU:
            raise
        return replace(open_session(path, CPU, plan), fallback_reason=str(error))


def choose_provider(device: Device, available: Sequence[str]) -> str:
    """The execution provider for a device; `auto` is CUDA where ONNX Runtime has it, else the CPU.

    CoreML is taken by name only: it has no TopK, so the scores of the whole catalogue would cross back.
    Raises ProviderError if the device was named and its provider is not there.
    """
    if device == "auto":
        return CUDA if CUDA in available else CPU
    provider = _PROVIDERS[device]
    if provider not in available:
        raise ProviderError(
            f"RECOMMENDER_DEVICE is {device}, and this ONNX Runtime has {', '.join(available)} and no {provider}: "
            f"{_REMEDIES[provider]}, or set RECOMMENDER_DEVICE=auto"
        )
    return provider


def open_session(path: Path, provider: str, plan: SessionPlan) -> Opened:
    """Build a session on one provider, and see that it is that provider which does the heavy work.

    Raises ProviderError if it is not, and ModelError if ONNX Runtime cannot load the file.
    """
    before = resident_memory()
    session = _build(path, provider, plan)
    opened = Opened(session, provider, memory_growth(before))
    if provider == CPU:
        return opened
    active = session.get_providers()
    if provider not in active:
        raise ProviderError(f"ONNX Runtime could not start {provider}: {_why(provider)}")
    # Batches start from scores in 8 bits on the CPU only.
    misplaced = [
        f"{node.op_type} {node.name}".strip()
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if (node.op_type in _HEAVY or node.name in plan.table_look_ups) and not node.name.startswith(f"{COARSE_PART}.")
    ]
    if misplaced:
        named = ", ".join(misplaced[:_NAMED_NODES])
        more = f" and {len(misplaced) - _NAMED_NODES} more" if len(misplaced) > _NAMED_NODES else ""
        raise ProviderError(
            f"{provider} leaves {named}{more} of {path.name} to the CPU, so every run would copy data back and forth; "
            "set RECOMMENDER_DEVICE=cpu, or export a model whose operators it has"
        )
    return opened


def runtime_version() -> str:
    """The version of ONNX Runtime."""
    version: str = onnxruntime.__version__
    return version


def refuse_two_runtimes() -> None:
    """Raise ProviderError if both builds of ONNX Runtime are installed: they overwrite each other's files."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    if len(found) > 1:
        raise ProviderError(
            f"{' and '.join(found)} are both installed and share one module, so it is chance which one runs: "
            "recreate the environment with `just setup` (CPU) or with `just setup-cuda` and then `just serve-cuda` "
            "(GPU), since a plain `uv run` installs the CPU build again"
        )


def _build(path: Path, provider: str, plan: SessionPlan) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = plan.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIETEST
    if not plan.spinning:
        # Between two nodes of a run a thread spins: waking it takes longer than most nodes do.
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    for name, size in plan.pinned.items():
        options.add_free_dimension_override_by_name(name, size)
    if provider == CPU:
        options.enable_mem_pattern = plan.memory_patterns
    told: dict[str, str] = {}
    if provider == CUDA:
        # Its libraries come from wheels, which no loader knows of; and its log repeats what `_why` says.
        onnxruntime.preload_dlls()
        told = plan.cuda.as_provider_options()
    elif provider == COREML:
        told = plan.coreml.as_provider_options()
    if provider != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    onnxruntime.set_default_logger_severity(_QUIETEST)
    try:
        # Without `enable_fallback=0` a provider that fails, now or in a run, is replaced by the CPU in silence.
        return onnxruntime.InferenceSession(str(path), options, providers=[(provider, told)], enable_fallback=0)
    except Exception as error:
        if provider != CPU and isinstance(error, _PROVIDER_FAULTS):
            raise ProviderError(
                f"{provider} could not load {path.name}: {error}; set RECOMMENDER_DEVICE=cpu to serve without it"
            ) from error
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}; copy or export the file again"
        ) from error


_PROVIDER_FAULTS = (runtime_errors.EPFail, runtime_errors.Fail, runtime_errors.RuntimeException, RuntimeError)


def _why(provider: str) -> str:
    """Explain why a provider cannot start, and what to do: ONNX Runtime only logs the reason."""
    if provider != CUDA:
        return _REMEDIES[provider]
    folder = Path(onnxruntime.__file__).parent / "capi"
    for library, remedy in (
        ("libcuda.so.1", "install the NVIDIA driver, or start the container with its devices (`--gpus all`)"),
        (str(folder / "libonnxruntime_providers_shared.so"), _REMEDIES[CUDA]),
        (str(folder / "libonnxruntime_providers_cuda.so"), "install NVIDIA's libraries with `just setup-cuda`"),
    ):
        try:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        except OSError as error:
            return f"{error}; {remedy}"
    return "its libraries load and find no device that they can use; see what `nvidia-smi` says"
