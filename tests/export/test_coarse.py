"""Coarse scores: exact all the same, whether they prove a ranking or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.artifact import write_model
from recommender.export.check import ModelFile, difference
from recommender.export.graph import build_graph
from recommender.export.head.coarse import Codes
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout, pack
from recommender.export.ties import check_ties
from recommender.export.truth import Rankings, masked

ITEMS, SIZE = 50_003, 16
Table = npt.NDArray[np.float32]


def table(kind: str) -> Table:
    random = np.random.default_rng(0)
    normal = random.standard_normal((ITEMS, SIZE), dtype=np.float32)
    match kind:
        case "uniform":
            return random.random((ITEMS, SIZE), dtype=np.float32)
        case "uneven columns":
            return normal * np.logspace(-6, 3, SIZE, dtype=np.float32)
        case "constant column":
            normal[:, 3] = 0.7
            return normal
        case "one giant":
            normal[77] *= 1_000
            return normal
        case "nearly equal":
            return np.ones_like(normal) + 1e-6 * normal
        case _:
            return normal


def model(embeddings: Table, folder: Path, bias: Table | None = None) -> Path:
    biased = bias is not None
    layout = Layout(len(embeddings), SIZE + biased)
    packed = pack(embeddings, bias, layout)

    def first_item(g: Nodes) -> str:
        whole = g.op("Gather", TABLE, g.op("Gather", "user_history", g.constant(np.array(0)), axis=1), axis=0)
        return g.op("Slice", whole, g.int64(0), g.int64(SIZE), g.int64(1))

    codes = Codes.of(packed, layout, bias=biased)
    graph = build_graph(first_item, layout, largest=float(np.abs(packed).max()), bias=biased, codes=codes)
    write_model(graph, packed, folder / "m.onnx", 1 << 30)
    return folder / "m.onnx"


@pytest.mark.parametrize(
    "kind", ["uniform", "normal", "uneven columns", "constant column", "one giant", "nearly equal"]
)
def test_the_ranking_is_the_exact_one_on_every_kind_of_table(kind: str, tmp_path: Path) -> None:
    embeddings = table(kind)
    ranker = ModelFile(model(embeddings, tmp_path))
    random = np.random.default_rng(1)
    for rows in (1, 5, 15, 16, 40):
        users = random.integers(0, ITEMS, rows)
        scores = (embeddings[users].astype(np.float64) @ embeddings.T.astype(np.float64)).astype(np.float32)
        # What float32 may differ by, whatever way it sums.
        norms = np.linalg.norm(embeddings, axis=1)
        tolerance = float(1e-6 * norms[users].max() * norms.max())
        for k in (1, 10, 100):
            got = ranker.rank([[int(user)] for user in users], k)
            assert difference(got, scores, k, tolerance) is None
        excluded = [(row, int(item)) for row in range(0, rows, 2) for item in np.argsort(-scores[row])[:20]]
        got = ranker.rank([[int(user)] for user in users], 10, excluded)
        assert difference(got, masked(scores, excluded, None), 10, tolerance) is None


def ask(path: Path, users: npt.NDArray[np.int64], k: int) -> tuple[Rankings, npt.NDArray[np.int64]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids, scores, fallbacks = session.run(
        ["recommendations", "scores", "fallbacks"],
        {
            "user_history": users[:, None],
            "history_length": np.ones(len(users), np.int64),
            "k": np.array([k]),
            "excluded": np.zeros((0, 2), np.int64),
            "candidates": np.zeros((len(users), 0), np.int64),
            "candidates_length": np.zeros(len(users), np.int64),
        },
    )
    return Rankings(ids, scores), fallbacks


def test_a_proven_ranking_needs_no_fallback(tmp_path: Path) -> None:
    _, fallbacks = ask(model(table("normal"), tmp_path), np.arange(8), 10)
    assert fallbacks.tolist() == [0] * 8


def test_a_row_that_cannot_be_proven_is_counted(tmp_path: Path) -> None:
    embeddings = table("nearly equal")
    _, fallbacks = ask(model(embeddings, tmp_path), np.arange(3), 10)
    assert fallbacks.tolist() == [1] * 3


def test_a_batch_that_starts_from_float_counts_nothing(tmp_path: Path) -> None:
    _, fallbacks = ask(model(table("nearly equal"), tmp_path), np.arange(40), 10)
    assert fallbacks.tolist() == [0] * 40


def test_a_bias_far_below_the_others_spoils_no_proof(tmp_path: Path) -> None:
    embeddings, bias = table("normal"), np.zeros(ITEMS, np.float32)
    bias[:20] = -1e9
    _, fallbacks = ask(model(embeddings, tmp_path, bias), np.arange(40, 48), 10)
    assert fallbacks.tolist() == [0] * 8


@pytest.mark.parametrize("kind", ["uniform", "normal", "uneven columns", "one giant"])
def test_the_codes_know_their_own_error(kind: str) -> None:
    embeddings = table(kind)
    layout = Layout(ITEMS, SIZE)
    codes = Codes.of(pack(embeddings, None, layout), layout)
    again = codes.middle.astype(np.float64) + codes.codes.T[:ITEMS] * codes.step.astype(np.float64)
    assert np.linalg.norm(embeddings - again, axis=1).max() == pytest.approx(codes.item_error)
    assert np.abs(codes.codes).max() <= 127


@pytest.mark.parametrize(("items", "bias"), [(20_000, False), (20_001, True), (70_003, False)])
def test_ties_go_to_the_lower_id(items: int, *, bias: bool) -> None:
    check_ties(items, 8 + bias, 1_000, bias=bias, coarse=True)


def test_an_export_with_coarse_scores_passes_its_own_check(tmp_path: Path) -> None:
    path = export_model(ExportOptions(items=30_000, coarse="int8", output=tmp_path / "10_model.onnx"))
    plain = export_model(ExportOptions(items=30_000, output=tmp_path / "plain" / "10_model.onnx"))
    one, other = (ModelFile(each).rank([[1, 2, 3]], 10) for each in (path, plain))
    assert np.array_equal(one.ids, other.ids)


def test_too_small_a_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="coarse is 'int8', but 1000 items are too few"):
        export_model(ExportOptions(items=1_000, coarse="int8", output=tmp_path / "10_model.onnx"))
