"""Settings of the engine and of the batches in front of it: devices, threads, batch sizes, the backlog."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from recommender.settings.group import Group

Device: TypeAlias = Literal["auto", "cpu", "cuda", "coreml"]
"""Where a model may run; `auto` leaves the choice to the engine."""
ArenaStrategy: TypeAlias = Literal["next_power_of_two", "same_as_requested"]
"""How much a device's memory arena takes when it must grow."""
CoreMLUnits: TypeAlias = Literal["all", "cpu_and_gpu", "cpu_and_neural_engine", "cpu_only"]
"""Which parts of Apple's chips CoreML may use."""
CoreMLFormat: TypeAlias = Literal["mlprogram", "neuralnetwork"]
"""What CoreML compiles a graph to."""

MOST_THREADS: Final = 1024
LARGEST_BATCH: Final = 4096


class EngineSettings(Group):
    """What the engine and the batcher read."""

    device: Device = "auto"
    """Where the model runs: auto, cpu, cuda or coreml. A device that is named and not available stops the start; auto
    takes CUDA where it works, else the CPU, and says why."""
    cuda_device_id: Annotated[int, Field(ge=0, le=1023)] = 0
    """Number of the CUDA device, as nvidia-smi counts them among the visible ones."""
    cuda_memory_limit_mb: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """MiB that the arena on the CUDA device may take. 0: what there is. Set it where several processes share the
    device; it needs room for the item table and one batch of scores."""
    cuda_arena: ArenaStrategy = "next_power_of_two"
    """How the arena on the CUDA device grows: next_power_of_two takes more than it needs and grows seldom;
    same_as_requested takes what it needs, for devices that are shared or nearly full."""
    cuda_graph: bool = False
    """Whether runs on CUDA are captured once for each shape and replayed, which saves the launch of each kernel. Pays
    off where the catalogue is small. Models with branches or loops, such as those that take exclusions or candidates,
    cannot be captured; the log says so."""
    cuda_tf32: bool = False
    """Whether CUDA may round the inputs of products to 10 bits of mantissa. Faster on large catalogues, and near ties
    change places: golden answers may then stop the start."""
    coreml_compute_units: CoreMLUnits = "cpu_and_gpu"
    """What CoreML may use: all, cpu_and_gpu, cpu_and_neural_engine or cpu_only. The neural engine computes in half
    precision, which moves near ties."""
    coreml_model_format: CoreMLFormat = "mlprogram"
    """What CoreML compiles the graph to: mlprogram (macOS 12 or newer, more operators) or neuralnetwork."""
    threads: Annotated[int, Field(ge=0, le=MOST_THREADS)] = 0
    """CPUs that one engine run uses. 0: all that this process may use (affinity and cgroup quota, rounded down), shared
    out among the engine slots, or one where the model is so quick that more bring nothing. Lower it where other
    processes need the cores; `recommender profile` measures what it costs."""
    thread_spinning: bool = False
    """Whether idle engine threads spin. Spinning saves some microseconds a run on cores that nobody else needs and
    starves everybody on shared ones."""
    engine_slots: Annotated[int, Field(ge=1, le=64)] = 1
    """Batches that run at once. More than 1 pays off only with many cores and a catalogue too small to keep them busy
    with one batch."""
    max_batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = 64
    """Rows of one batch at most. Larger batches raise throughput until the cores are busy, and the time that everybody
    in the batch waits."""
    max_wait_ms: Annotated[float, Field(ge=0, le=100)] = 2.0
    """Milliseconds that a batch gathers callers while they keep coming. It starts at once where nobody else comes, so a
    caller by itself does not wait; on a busy server it makes batches larger and each call cheaper. 0: a batch starts
    with whoever is there when the engine comes free."""
    max_backlog: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Requests that wait at most; one more is refused with RESOURCE_EXHAUSTED. The longest wait is about this number
    divided by the throughput."""
    engine_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 30_000
    """Milliseconds after which an engine run counts as hung: every caller is told and the process exits for its
    orchestrator to start anew. Not applied to loading and warm-up. Far above the slowest run."""
    deduplicate: bool = False
    """Whether equal requests that wait together share one row. Pays off where many callers send the same history at the
    same time."""
