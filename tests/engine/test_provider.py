"""Execution providers: what was asked for is what runs, or the start says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from recommender.domain import Query
from recommender.engine.provider import (
    CPU,
    CUDA,
    CoreMLOptions,
    CudaOptions,
    SessionPlan,
    choose_provider,
    open_session,
    refuse_two_runtimes,
)
from recommender.errors import ModelError, ProviderError
from tests.support import models
from tests.support.engines import Load

PLAN = SessionPlan(threads=1)
AZURE = "AzureExecutionProvider"  # In the CPU wheel. It takes no node of these models, so it falls back.

needs_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(), reason="this build of ONNX Runtime has no second provider"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.batched(tmp_path / "10_model.onnx", models.table(), k=10)


@pytest.mark.parametrize("device", ["cuda", "coreml"])
def test_a_device_that_is_not_there_is_refused_with_what_is_there(device: str) -> None:
    with pytest.raises(ProviderError) as refused:
        choose_provider(device, ["AzureExecutionProvider", "CPUExecutionProvider"])  # type: ignore[arg-type]
    message = str(refused.value)
    assert "AzureExecutionProvider, CPUExecutionProvider" in message
    assert "just setup-cuda" in message or "macOS" in message
    assert "RECOMMENDER_DEVICE=auto" in message


def test_auto_prefers_cuda_and_never_takes_coreml() -> None:
    assert choose_provider("auto", [CUDA, CPU]) == CUDA
    assert choose_provider("auto", ["CoreMLExecutionProvider", CPU]) == CPU


@pytest.mark.parametrize("kept", [True, False])
def test_a_session_keeps_memory_plans_for_shapes_if_the_plan_says_so(model: Path, *, kept: bool) -> None:
    opened = open_session(model, CPU, replace(PLAN, memory_patterns=kept))
    assert opened.session.get_session_options().enable_mem_pattern is kept


@pytest.mark.parametrize("spinning", [True, False])
def test_threads_of_a_run_spin_for_microseconds_unless_the_plan_leaves_it_to_onnx_runtime(
    model: Path, *, spinning: bool
) -> None:
    options = open_session(model, CPU, SessionPlan(threads=2, spinning=spinning)).session.get_session_options()
    told = {name: _told(options, f"session.intra_op.{name}") for name in ("allow_spinning", "spin_duration_us")}
    assert told == {"allow_spinning": None, "spin_duration_us": None if spinning else "20"}


def _told(options: onnxruntime.SessionOptions, name: str) -> str | None:
    try:
        told: str = options.get_session_config_entry(name)
    except RuntimeError:  # it was not set
        return None
    return told


def test_on_the_cpu_nothing_fell_back(load: Load, model: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA, which auto prefers")
    engine = load(model, device="auto")
    assert (engine.provider, engine.fallback_reason) == (CPU, None)


@needs_azure
def test_a_provider_that_leaves_the_work_to_the_cpu_is_refused_with_the_nodes_it_left(model: Path) -> None:
    plan = SessionPlan(threads=1, table_look_ups=frozenset({"items"}))
    with pytest.raises(ProviderError) as refused:
        open_session(model, AZURE, plan)
    message = str(refused.value)
    assert "Gemm score" in message
    assert "TopK top" in message
    assert "Gather items" in message
    assert "Shape" not in message
    assert "RECOMMENDER_DEVICE=cpu" in message


@needs_azure
def test_nodes_that_only_compute_shapes_may_run_on_the_cpu(tmp_path: Path) -> None:
    shape = models.shape_only(tmp_path / "shape.onnx")
    assert open_session(shape, AZURE, PLAN).session.get_providers()[0] == AZURE


def test_a_provider_that_does_not_start_is_refused_instead_of_replaced(model: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA: tests/engine/test_wheels.py shows what it does")
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(ProviderError, match="could not start"):
        open_session(model, CUDA, PLAN)


def test_where_cuda_does_not_work_auto_takes_the_cpu_and_says_why(
    load: Load, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA: tests/engine/test_wheels.py shows what it does")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.warns(UserWarning, match="not in available"):
        engine = load(model, device="auto")
    assert engine.provider == CPU
    assert engine.fallback_reason is not None
    assert "could not start CUDAExecutionProvider" in engine.fallback_reason
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(ProviderError, match="could not start CUDAExecutionProvider"),
    ):
        load(model, device="cuda")


def test_both_builds_in_one_environment_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProviderError, match=r"onnxruntime .* and onnxruntime-gpu 1\.2\.3 are both installed"):
        refuse_two_runtimes()


def test_cuda_is_told_what_the_settings_say() -> None:
    told = CudaOptions(
        device_id=1, memory_limit_mb=512, arena="same_as_requested", graph=True, tf32=True
    ).as_provider_options()
    assert told == {
        "device_id": "1",
        "gpu_mem_limit": str(512 << 20),
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",
        "use_tf32": "1",
    }
    assert "gpu_mem_limit" not in CudaOptions().as_provider_options()


def test_coreml_is_told_what_the_settings_say() -> None:
    told = CoreMLOptions("cpu_and_neural_engine", "neuralnetwork").as_provider_options()
    assert told == {"MLComputeUnits": "CPUAndNeuralEngine", "ModelFormat": "NeuralNetwork"}


def test_a_file_that_is_no_model_is_the_models_fault_on_every_provider(tmp_path: Path) -> None:
    path = tmp_path / "10_model.onnx"
    path.write_bytes(b"no protobuf at all")
    for provider in (CPU, AZURE):
        with pytest.raises(ModelError, match="cannot load"):
            open_session(path, provider, PLAN)


@pytest.mark.cuda
async def test_on_a_cuda_device_cuda_does_the_work(load: Load, tmp_path: Path) -> None:
    embeddings = models.table(2_000, 16)
    path = models.batched(tmp_path / "10_model.onnx", embeddings, metadata={"recommender.items": "2000"}, k=10)
    engine = load(path, device="cuda")
    assert (engine.provider, engine.fallback_reason) == (CUDA, None)
    (ranking,) = await engine.run([Query((1, 2, 3), 10)])
    assert ranking.item_ids == models.brute_force(embeddings, [1, 2, 3], 10)[0]


@pytest.mark.cuda
async def test_on_a_cuda_device_captured_runs_give_the_same_answers(load: Load, tmp_path: Path) -> None:
    embeddings = models.table(2_000, 16)
    path = models.batched(tmp_path / "10_model.onnx", embeddings, metadata={"recommender.items": "2000"}, k=10)
    engine = load(path, device="cuda", plan=SessionPlan(0, cuda=CudaOptions(graph=True)))
    assert engine.captures
    for history in ((1, 2, 3), (4,), (1, 2, 3), tuple(range(40))):
        (ranking,) = await engine.run([Query(history, 10)])
        assert ranking.item_ids == models.brute_force(embeddings, history, 10)[0]


@pytest.mark.cuda
def test_on_a_cuda_device_a_model_that_does_not_tell_its_items_is_refused(load: Load, model: Path) -> None:
    with pytest.raises(ModelError, match="does not say how many items it has"):
        load(model, device="cuda")


def test_on_the_cpu_nothing_is_captured(load: Load, model: Path) -> None:
    assert not load(model, plan=SessionPlan(0, cuda=CudaOptions(graph=True))).captures


@pytest.mark.coreml
def test_on_a_mac_coreml_says_that_it_has_no_topk(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "10_model.onnx", models.table(), metadata={"recommender.items": "50"}, k=10)
    with pytest.raises(ProviderError, match="TopK"):
        load(path, device="coreml")
