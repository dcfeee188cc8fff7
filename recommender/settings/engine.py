"""Settings of the engine and of the batches in front of it: devices, threads, batch sizes, the backlog."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from recommender.settings.group import Group

Device: TypeAlias = Literal["auto", "cpu", "cuda", "coreml"]
"""Where a model may run; `auto` leaves the choice to the engine."""
ArenaStrategy: TypeAlias = Literal["next_power_of_two", "same_as_requested"]
"""How a device's memory arena grows."""
CoreMLUnits: TypeAlias = Literal["all", "cpu_and_gpu", "cpu_and_neural_engine", "cpu_only"]
"""Which parts of Apple's chips CoreML may use."""
CoreMLFormat: TypeAlias = Literal["mlprogram", "neuralnetwork"]
"""What CoreML compiles a graph to."""

MOST_THREADS: Final = 1024
LARGEST_BATCH: Final = 4096


class EngineSettings(Group):
    """Settings of the engine and the batcher."""

    device: Device = "auto"
    """Where the model runs: auto, cpu, cuda or coreml. A named device that is unavailable stops the start. auto takes
    CUDA if it works, else the CPU, and logs why."""
    cuda_device_id: Annotated[int, Field(ge=0, le=1023)] = 0
    """Number of the CUDA device, as nvidia-smi counts the visible ones."""
    cuda_memory_limit_mb: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Most MiB for the arena on the CUDA device. 0: no limit. Set it if several processes share the device; it needs
    room for the item table and one batch of scores."""
    cuda_arena: ArenaStrategy = "next_power_of_two"
    """How the arena on the CUDA device grows. next_power_of_two over-allocates and grows seldom. same_as_requested
    allocates what it needs, for shared or nearly full devices."""
    cuda_graph: bool = False
    """Whether CUDA runs are captured once for each shape and replayed, which saves kernel launches. Pays off with a
    small catalogue. Models with branches or loops, such as those that take exclusions or candidates, cannot be
    captured; the log says so."""
    cuda_tf32: bool = False
    """Whether CUDA may round the inputs of products to 10 bits of mantissa. Faster on large catalogues, but near ties
    change places, and golden answers may then stop the start."""
    coreml_compute_units: CoreMLUnits = "cpu_and_gpu"
    """What CoreML may use: all, cpu_and_gpu, cpu_and_neural_engine or cpu_only. The neural engine computes in half
    precision, which reorders near ties."""
    coreml_model_format: CoreMLFormat = "mlprogram"
    """What CoreML compiles the graph to: mlprogram (macOS 12 or newer, more operators) or neuralnetwork."""
    threads: Annotated[int, Field(ge=0, le=MOST_THREADS)] = 0
    """CPUs for one engine run. 0: all that this process may use (affinity and cgroup quota, rounded down), divided
    among the engine slots. It is one if the model is so fast that more do not help. Lower it if other processes need
    the cores; `recommender profile` measures the cost."""
    thread_spinning: bool = False
    """Whether engine threads spin for long before they sleep. By default they spin for 20 microseconds. Longer saves
    some microseconds a run on dedicated cores, and starves other threads on shared ones."""
    engine_slots: Annotated[int, Field(ge=1, le=64)] = 1
    """Batches that run at once. More than 1 pays off only with many cores and a catalogue too small to keep them busy
    with one batch."""
    max_batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = 64
    """Most rows of one batch. Larger batches raise throughput until the cores are busy, and the waiting time of every
    caller in the batch."""
    max_wait_ms: Annotated[float, Field(ge=0, le=100)] = 2.0
    """Most milliseconds that a batch waits for more callers while they keep arriving. A lone caller does not wait: a
    batch starts at once if no other arrives. On a busy server it makes batches larger and each call cheaper. 0: a batch
    takes the callers that wait when the engine becomes free."""
    max_backlog: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Most waiting requests; one more is refused with RESOURCE_EXHAUSTED. The longest wait is about this number divided
    by the throughput."""
    engine_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 30_000
    """Milliseconds after which an engine run counts as hung: every caller gets an error and the process exits, for its
    orchestrator to restart it. Not applied to loading and warm-up. Keep it far above the slowest run."""
    deduplicate: bool = False
    """Whether equal requests that wait together share one row. Pays off if many callers send the same history at the
    same time."""
