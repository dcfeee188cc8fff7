"""Models that cannot be served: each is refused at load or warm-up, with a sentence, never in a request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import structlog
from onnx import TensorProto, helper, numpy_helper

from recommender.engine.sessions import as_model_error
from recommender.errors import ModelError
from recommender.models.artifact import open_artifact
from recommender.models.loader import loader
from recommender.settings.settings import Settings
from tests.support import models
from tests.support.engines import Load

ITEMS = 50


def card(model: Path, **changes: Any) -> Path:
    """Write a card that fits the model, but for the changes."""
    content = {
        "name": "hand-made",
        "version": "1",
        "network": "mean",
        "items": ITEMS,
        "embedding_size": 4,
        "default_k": 10,
        "max_k": 20,
        "score_tolerance": 1e-5,
        "opset": 18,
        "exported_by": "a test",
        "exported_at": "2025-01-01T00:00:00Z",
        "exported_with": {},
        "files": [
            {
                "path": model.name,
                "role": "model",
                "size": model.stat().st_size,
                "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            }
        ],
        "golden": [],
        **changes,
    }
    model.with_suffix(".card.json").write_text(json.dumps(content), encoding="utf-8")
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "10_model.onnx"


@pytest.fixture
def model(path: Path) -> Path:
    return models.batched(path, models.table(ITEMS, 4))


def value(name: str, kind: int, shape: list[str | int]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def passing(path: Path, inputs: list[Any], outputs: list[Any]) -> Path:
    """A model whose outputs are constants: only its ports matter."""
    nodes = [
        helper.make_node(
            "Constant",
            [],
            [output.name],
            value=numpy_helper.from_array(
                np.zeros(
                    [1] * len(output.type.tensor_type.shape.dim),
                    helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type),
                )
            ),
        )
        for output in outputs
    ]
    return models.save(path, nodes, inputs, outputs)


HISTORY = value("user_history", TensorProto.INT64, ["batch", "history"])
LENGTH = value("history_length", TensorProto.INT64, ["batch"])
ITEM_IDS = value("recommendations", TensorProto.INT64, [1, 1])
SCORES = value("scores", TensorProto.FLOAT, [1, 1])


@pytest.mark.parametrize(
    ("inputs", "outputs", "fault"),
    [
        ([HISTORY], [ITEM_IDS, SCORES], "input history_length is missing"),
        ([HISTORY, LENGTH], [ITEM_IDS], "output scores is missing"),
        ([HISTORY, LENGTH], [SCORES], "output recommendations is missing"),
        (
            [value("user_history", TensorProto.INT32, ["b", "h"]), LENGTH],
            [ITEM_IDS, SCORES],
            r"input user_history is tensor\(int32\) of rank 2, not tensor\(int64\) of rank 2",
        ),
        (
            [HISTORY, value("history_length", TensorProto.INT64, ["b", 1])],
            [ITEM_IDS, SCORES],
            "input history_length is .* of rank 2, not .* of rank 1",
        ),
        ([HISTORY, LENGTH, value("age", TensorProto.FLOAT, ["b"])], [ITEM_IDS, SCORES], "input age is unknown"),
        (
            [HISTORY, LENGTH, value("candidates", TensorProto.INT64, ["b", "c"])],
            [ITEM_IDS, SCORES],
            "candidates and candidates_length go together",
        ),
        (
            [HISTORY, LENGTH],
            [ITEM_IDS, value("scores", TensorProto.DOUBLE, [1, 1])],
            r"output scores is tensor\(double\)",
        ),
    ],
)
def test_ports_that_do_not_fit_the_contract_are_named(
    load: Load, path: Path, inputs: list[Any], outputs: list[Any], fault: str
) -> None:
    with pytest.raises(ModelError, match=fault):
        load(passing(path, inputs, outputs))


def test_everything_that_does_not_fit_is_named_at_once(load: Load, path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        load(passing(path, [value("x", TensorProto.FLOAT, ["n"])], [value("y", TensorProto.FLOAT, [1])]))
    for fault in (
        "input user_history is missing",
        "input history_length is missing",
        "input x is unknown",
        "output recommendations is missing",
        "output scores is missing",
        "output y is unknown",
        "recommender export",
    ):
        assert fault in str(refused.value)


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 0.5, -1])
def test_a_truncated_file_is_refused(load: Load, model: Path, kept: float) -> None:
    content = model.read_bytes()
    model.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with pytest.raises(ModelError, match="is damaged"):
        load(model)


def test_a_file_of_anything_else_is_refused(load: Load, path: Path) -> None:
    path.write_bytes(b"<html>404 not found</html>")
    with pytest.raises(ModelError, match="is damaged"):
        load(path)


def test_a_digest_that_is_not_the_cards_is_refused(load: Load, model: Path) -> None:
    card(model)
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(ModelError, match=r"its card says .*: the file was altered or replaced"):
        load(model)


def test_numbers_kept_in_another_file_must_be_there_and_whole(load: Load, path: Path) -> None:
    models.batched(path, models.table(2_000, 16), external=True)
    beside = path.with_name("10_model.onnx.data")
    content = beside.read_bytes()
    load(path)
    beside.write_bytes(content[:-1])
    with pytest.raises(ModelError, match="was cut short or replaced"):
        load(path)
    beside.unlink()
    with pytest.raises(ModelError, match=r"keeps its numbers in 10_model\.onnx\.data, which is not in its folder"):
        load(path)


def in_an_initializer(network: onnx.ModelProto, tensor: TensorProto) -> None:
    tensor.name = "table"
    network.graph.initializer[0].CopyFrom(tensor)


def in_an_attribute(network: onnx.ModelProto, tensor: TensorProto) -> None:
    network.graph.node.append(helper.make_node("Constant", [], ["aside"], value=tensor))


def in_a_sparse_constant(network: onnx.ModelProto, tensor: TensorProto) -> None:
    network.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, dims=[ITEMS]))


def in_a_branch(network: onnx.ModelProto, tensor: TensorProto) -> None:
    inner = helper.make_graph([], "branch", [], [], [tensor])
    network.graph.node.append(helper.make_node("If", ["one"], ["aside"], then_branch=inner, else_branch=inner))


def in_a_function(network: onnx.ModelProto, tensor: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    network.functions.append(helper.make_function("ours", "f", [], ["y"], [node], [helper.make_opsetid("", 18)]))


PLACES = [in_an_initializer, in_an_attribute, in_a_sparse_constant, in_a_branch, in_a_function]


@pytest.mark.parametrize("put", PLACES)
@pytest.mark.parametrize("location", ["stray.data", "../stray.data", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
async def test_a_file_that_the_card_does_not_list_is_never_opened(
    model: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[onnx.ModelProto, TensorProto], None], location: str
) -> None:
    import onnxruntime  # noqa: PLC0415 (to take it away)

    network = onnx.load(model)
    tensor = numpy_helper.from_array(models.table(ITEMS, 4), "stray")
    model.with_name("stray.data").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location=location)
    tensor.ClearField("raw_data")
    put(network, tensor)
    model.write_bytes(network.SerializeToString())  # noqa: ASYNC240 (one small file)
    monkeypatch.delattr(onnxruntime, "InferenceSession")

    with pytest.raises(ModelError, match=r"which its card does not list|which is not in its folder"):
        await check(card(model))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"\x3a" + b"\x80" * 100_000, "a number that does not end"),
        (b"\x3a\x80\x80\x40" + b"\x0a\x80\x80\x40" * 1000, "too early"),
    ],
)
def test_a_model_made_to_tire_its_reader_is_refused(load: Load, path: Path, damage: bytes, reason: str) -> None:
    path.write_bytes(damage)
    with pytest.raises(ModelError, match=reason):
        load(path)


def test_graphs_nested_too_deep_are_refused(load: Load, path: Path) -> None:
    content = b""
    for field in (6, 5, 1) * 100:  # a graph in an attribute of a node
        size = len(content)
        content = bytes([field << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content
    size = len(content)
    path.write_bytes(bytes([7 << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content)
    with pytest.raises(ModelError, match="nested too deep"):
        load(path)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_in_the_table_that_is_none_is_refused_with_its_place(
    load: Load, path: Path, bad: float, *, external: bool
) -> None:
    embeddings = models.table(2_000, 16)
    embeddings[1_234, 5] = bad
    models.batched(path, embeddings, external=external)
    with pytest.raises(ModelError, match=r"holds a NaN or an infinity: table\[1234, 5\] of \[2000, 16\]"):
        load(path)


CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"items": 50}, {"recommender.items": "49"}, "its card says items 50 and its metadata 49"),
    ({"default_k": 10}, {"recommender.default_k": "5"}, "its card says default_k 10 and its metadata 5"),
    ({"max_k": 20}, {"recommender.max_k": "30"}, "its card says max_k 20 and its metadata 30"),
    ({"longest_history": 7}, {"recommender.longest_history": "8"}, "longest_history 7 and its metadata 8"),
    ({"max_k": 51}, {}, "max_k 51 is above the 50 items of its catalogue"),
    ({"default_k": 21}, {}, "default_k 21 is above max_k 20"),
    ({}, {"recommender.items": "many"}, "recommender.items is 'many', not a whole number"),
]


@pytest.mark.parametrize(("changes", "metadata", "fault"), CONTRADICTIONS)
def test_a_card_and_a_file_that_contradict_each_other_are_refused(
    load: Load, path: Path, changes: dict[str, Any], metadata: dict[str, str], fault: str
) -> None:
    models.batched(path, models.table(ITEMS, 4), metadata=metadata)
    with pytest.raises(ModelError, match=fault):
        load(card(path, **changes))


def test_metadata_that_asks_for_more_than_the_catalogue_is_refused_without_a_card_too(load: Load, path: Path) -> None:
    models.batched(path, models.table(ITEMS, 4), metadata={"recommender.items": "50", "recommender.default_k": "51"})
    with pytest.raises(ModelError, match="max_k 51 is above the 50 items"):
        load(path)


def test_a_fixed_number_that_is_not_the_cards_is_refused(load: Load, path: Path) -> None:
    models.batched(path, models.table(ITEMS, 4), k=5)
    with pytest.raises(ModelError, match="it returns 5 recommendations and says 10"):
        load(card(path, max_k=10))
    with pytest.raises(ModelError, match="max_k 20 needs an input k"):
        load(card(path, default_k=5))


def test_a_model_that_does_not_say_how_many_it_gives_is_refused(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "nameless.onnx", models.table(ITEMS, 4))
    with pytest.raises(ModelError, match="says how many recommendations it gives"):
        load(path)


async def check(model: Path) -> None:
    """Load and check a version as the server does, and end it again."""
    version = await loader(Settings(device="cpu")).load(open_artifact(model))
    await version.batcher.close()
    assert version.close_engine()


async def test_more_recommendations_than_the_table_has_rows_fail_the_checks(path: Path) -> None:
    with pytest.raises(ModelError, match="loads but does not run"):
        await check(models.batched(path, models.table(5)))


def test_a_run_without_memory_says_so_and_what_to_try(path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not run: MemoryError; .* run smaller batches"), as_model_error(path):
        raise MemoryError


async def test_a_catalogue_larger_than_the_table_fails_the_checks(model: Path) -> None:
    with pytest.raises(ModelError, match="loads but does not run"):
        await check(card(model, items=ITEMS + 1))


async def test_a_catalogue_smaller_than_the_table_fails_the_checks(model: Path) -> None:
    with pytest.raises(ModelError, match="recommends what is not in its catalogue"):
        await check(card(model, items=20, max_k=20))


@pytest.mark.parametrize("names", [["excluded"], ["candidates", "candidates_length"]])
async def test_exclusions_and_candidates_that_the_network_ignores_fail_the_checks(
    model: Path, names: list[str]
) -> None:
    network = onnx.load(model)
    for name in names:
        shape = ["n"] if name == "candidates_length" else ["n", "m"]
        network.graph.input.append(value(name, TensorProto.INT64, list(shape)))
    onnx.save(network, model)
    with pytest.raises(ModelError, match=r"does not keep to .*: (without|among) \["):
        await check(card(model))


async def test_a_version_says_in_the_log_what_its_batches_take(path: Path) -> None:
    with structlog.testing.capture_logs() as log:
        await check(models.batched(path, models.table(400_000, 32)))
    (loaded,) = (line for line in log if line["event"] == "loaded")
    if loaded["working_mb"] is None:
        pytest.skip("this system does not tell what a process holds")
    assert loaded["working_mb"] > 0


def test_a_model_that_is_too_large_for_the_memory_is_refused(load: Load, model: Path) -> None:
    constants = ITEMS * 4 * 4  # and a few single numbers
    with pytest.raises(ModelError, match=r"does not fit into memory: .*cgroup limits included"):
        load(model, free_memory=lambda: constants // 2)
    load(model, free_memory=lambda: None)
    load(model, free_memory=lambda: constants * 3)


def test_it_is_refused_before_anything_of_it_is_loaded(
    load: Load, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime  # noqa: PLC0415 (to take it away)

    monkeypatch.delattr(onnxruntime, "InferenceSession")
    with pytest.raises(ModelError, match="does not fit into memory"):
        load(model, free_memory=lambda: 1)


def golden() -> dict[str, Any]:
    embeddings = models.table(ITEMS, 4)
    ranked = models.brute_force(embeddings, [1, 2], 10)[0]
    scores = embeddings[ranked] @ embeddings[[1, 2]].mean(axis=0)
    return {"item_ids": [1, 2], "recommendations": ranked, "scores": scores.tolist()}


async def test_golden_answers_that_hold_let_the_model_start(model: Path) -> None:
    await check(card(model, golden=[golden()]))


@pytest.mark.parametrize("change", ["order", "item", "score", "count"])
async def test_golden_answers_that_differ_stop_the_start(model: Path, change: str) -> None:
    answer = golden()
    ids, scores = answer["recommendations"], answer["scores"]
    if change == "order":
        ids[0], ids[1] = ids[1], ids[0]
    elif change == "item":
        ids[0] = next(item for item in range(ITEMS) if item not in ids)
    elif change == "score":
        scores[0] += 1
    else:
        ids.append(next(item for item in range(ITEMS) if item not in ids))
        scores.append(0.0)
    with pytest.raises(ModelError, match=r"does not give its card's answer: for the history \[1, 2\]"):
        await check(card(model, golden=[answer]))


@pytest.mark.parametrize(
    ("inputs", "fault"),
    [
        ([value("user_history", TensorProto.INT64, [1, "h"]), LENGTH], "user_history has a fixed batch of 1"),
        ([value("user_history", TensorProto.INT64, ["b", 50]), LENGTH], "user_history has a fixed history of 50"),
        ([HISTORY, value("history_length", TensorProto.INT64, [1])], "history_length has a fixed batch of 1"),
        ([HISTORY, LENGTH, value("excluded", TensorProto.INT64, [9, 2])], "excluded has a fixed number of pairs of 9"),
    ],
)
def test_an_input_of_one_size_is_refused_with_the_way_to_free_it(
    load: Load, path: Path, inputs: list[Any], fault: str
) -> None:
    with pytest.raises(ModelError, match=rf"{fault}.* Export it with free dimensions, as torch\.onnx\.export"):
        load(passing(path, inputs, [ITEM_IDS, SCORES]))


FLAWS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"flaws": {7: np.nan}}, {}, "the model gives the score nan"),
    ({"shifts": {7: 50}}, {}, "recommends what is not in its catalogue"),
    ({"mask_by_value": True}, {}, "with other ids in the padding"),
    ({}, {"never_recommended": [49, 8, 3]}, "never"),
    ({"shifts": {0: 1000}, "card": False}, {}, "and cannot read it in a history"),
]


@pytest.mark.parametrize(("form", "changes", "fault"), FLAWS)
async def test_random_histories_find_what_golden_answers_do_not(
    path: Path, form: dict[str, Any], changes: dict[str, Any], fault: str
) -> None:
    with_card = form.pop("card", True)
    model = models.batched(path, models.table(ITEMS, 4), **form)
    with pytest.raises(ModelError, match=fault):
        await check(card(model, **changes) if with_card else model)


async def test_a_model_that_masks_by_value_is_taken_if_its_card_names_the_id(path: Path) -> None:
    model = models.batched(path, models.table(ITEMS, 4), mask_by_value=True)
    await check(card(model, padding_id=0))


def test_a_card_is_read_before_the_model(model: Path) -> None:
    card(model, items=0)
    with pytest.raises(ModelError, match="items"):
        open_artifact(model)
