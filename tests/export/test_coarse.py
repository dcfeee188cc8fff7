"""Coarse scores: exact all the same, whether they prove a ranking or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from recommender.engine.masked.bounds import block_of
from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.artifact import write_model
from recommender.export.check import ModelFile, difference
from recommender.export.graph import build_graph
from recommender.export.head.codes import CODES, ZERO, Codes
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout, pack
from recommender.export.ties import check_ties
from recommender.export.truth import Rankings, masked

ITEMS, SIZE = 50_003, 16
Table = npt.NDArray[np.float32]


def table(kind: str) -> Table:
    random = np.random.default_rng(0)
    made = random.standard_normal((ITEMS, SIZE), dtype=np.float32)
    match kind:
        case "uniform":
            made = random.random((ITEMS, SIZE), dtype=np.float32)
        case "popular":
            made *= np.minimum(1 + random.pareto(2.0, (ITEMS, 1)), 10).astype(np.float32)
        case "clustered":
            centres = random.standard_normal((50, SIZE), dtype=np.float32)
            made = centres[random.integers(0, 50, ITEMS)] + np.float32(0.3) * made
        case "uneven columns":
            made *= np.logspace(-6, 3, SIZE, dtype=np.float32)
        case "constant column":
            made[:, 3] = 0.7
        case "one giant":
            made[77] *= 1_000
        case "long tail":
            made *= random.lognormal(0, 1.5, (ITEMS, 1)).astype(np.float32)
        case "nearly equal":
            made = np.ones_like(made) + np.float32(1e-6) * made
        case "zeros":
            made[:] = 0
    return made


def model(embeddings: Table, folder: Path, bias: Table | None = None, *, size: float = 1.0) -> Path:
    """A user is `size` times the embedding of the history's first item."""
    biased = bias is not None
    layout = Layout(len(embeddings), SIZE + biased)
    packed = pack(embeddings, bias, layout)

    def first_item(g: Nodes) -> str:
        whole = g.op("Gather", TABLE, g.op("Gather", "user_history", g.constant(np.array(0)), axis=1), axis=0)
        return g.op("Mul", g.op("Slice", whole, g.int64(0), g.int64(SIZE), g.int64(1)), g.float32(size))

    codes = Codes.of(packed, layout, bias=biased)
    graph = build_graph(first_item, layout, largest=float(np.abs(packed).max()), bias=biased, codes=codes)
    write_model(graph, packed, folder / "m.onnx", 1 << 30, {CODES: codes.codes})
    return folder / "m.onnx"


@pytest.mark.parametrize(
    "kind",
    [
        "uniform",
        "normal",
        "popular",
        "clustered",
        "uneven columns",
        "constant column",
        "one giant",
        "long tail",
        "nearly equal",
        "zeros",
    ],
)
def test_the_ranking_is_the_exact_one_on_every_kind_of_table(kind: str, tmp_path: Path) -> None:
    embeddings = table(kind)
    ranker = ModelFile(model(embeddings, tmp_path))
    random = np.random.default_rng(1)
    for rows in (1, 5, 15, 16, 40):
        users = random.integers(0, ITEMS, rows)
        scores = (embeddings[users].astype(np.float64) @ embeddings.T.astype(np.float64)).astype(np.float32)
        # The largest difference of float32, for any order of the sum.
        norms = np.linalg.norm(embeddings, axis=1)
        tolerance = float(1e-6 * norms[users].max() * norms.max())
        for k in (1, 10, 100):
            got = ranker.rank([[int(user)] for user in users], k)
            assert difference(got, scores, k, tolerance) is None
        excluded = [(row, int(item)) for row in range(0, rows, 2) for item in np.argsort(-scores[row])[:20]]
        got = ranker.rank([[int(user)] for user in users], 10, excluded)
        assert difference(got, masked(scores, excluded, None), 10, tolerance) is None


def ask(
    path: Path, users: npt.NDArray[np.int64], k: int, coarse_rows: tuple[int, int] | None = None
) -> tuple[Rankings, npt.NDArray[np.int64]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids, scores, fallbacks = session.run(
        ["recommendations", "scores", "fallbacks"],
        {
            "user_history": users[:, None],
            "history_length": np.ones(len(users), np.int64),
            "k": np.array([k]),
            "excluded": np.zeros((0, 2), np.int64),
            "candidates": np.zeros((len(users), 0), np.int64),
            "candidates_length": np.zeros(len(users), np.int64),
            **({} if coarse_rows is None else {"coarse_rows": np.array(coarse_rows)}),
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


def test_a_batch_of_another_size_starts_from_float(tmp_path: Path) -> None:
    path = model(table("nearly equal"), tmp_path)
    for rows, wanted, failed in ((3, (1, 2), 0), (3, (4, 9), 0), (3, (2, 4), 1)):
        _, fallbacks = ask(path, np.arange(rows), 10, wanted)
        assert fallbacks.tolist() == [failed] * rows


def crowded(crowd: int) -> Table:
    """Normal items, of which the first `crowd` are nearly one, far out."""
    embeddings = table("normal")
    embeddings[:crowd] = 4 * embeddings[0] + 1e-5 * embeddings[:crowd]
    return embeddings


def test_a_row_that_proves_nothing_leaves_its_mates_their_answers(tmp_path: Path) -> None:
    embeddings = crowded(40_000)
    path = model(embeddings, tmp_path)
    users = np.array([40_001, 7, 40_002, 40_003, 40_004])
    together, fallbacks = ask(path, users, 10)
    scores = embeddings[users] @ embeddings.T
    # For users close to the crowd its members have about the same score.
    hard = (scores[:, :40_000].max(axis=1) > np.sort(scores[:, 40_000:], axis=1)[:, -10]).astype(int)
    assert 0 < hard.sum() < 5
    assert fallbacks.tolist() == hard.tolist()
    assert difference(together, scores, 10, 1e-4) is None
    for row in np.flatnonzero(hard == 0):
        alone, _ = ask(path, users[[row]], 10)
        assert np.array_equal(alone.ids[0], together.ids[row])


def test_a_row_looks_at_as_much_as_it_needs_for_a_proof(tmp_path: Path) -> None:
    embeddings = crowded(3_000)
    users = np.array([5, 40_001])
    got, fallbacks = ask(model(embeddings, tmp_path), users, 10)
    assert fallbacks.tolist() == [0, 0]
    assert difference(got, embeddings[users] @ embeddings.T, 10, 1e-4) is None


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1e25])
def test_the_size_of_a_user_vector_changes_no_ranking(tmp_path: Path, size: float) -> None:
    embeddings, users = table("normal"), np.arange(12)
    got, fallbacks = ask(model(embeddings, tmp_path, size=size), users, 10)
    scores = (embeddings[users].astype(np.float64) @ embeddings.T.astype(np.float64)).astype(np.float32)
    assert difference(Rankings(got.ids, (got.scores / np.float32(size))), scores, 10, 1e-4) is None
    assert fallbacks.tolist() == [0] * 12


def test_a_bias_far_below_the_others_spoils_no_proof(tmp_path: Path) -> None:
    embeddings, bias = table("normal"), np.zeros(ITEMS, np.float32)
    bias[:20] = -1e9
    _, fallbacks = ask(model(embeddings, tmp_path, bias), np.arange(40, 48), 10)
    assert fallbacks.tolist() == [0] * 8


def test_items_that_are_never_recommended_spoil_no_proof() -> None:
    embeddings = table("normal")
    embeddings[:500] *= 1_000
    layout = Layout(ITEMS, SIZE)
    packed = pack(embeddings, None, layout)
    codes, without = Codes.of(packed, layout, never=range(500)), Codes.of(packed, layout)
    assert codes.item_error < without.item_error / 100
    assert np.array_equal(codes.codes.reshape(-1, SIZE)[:500], np.tile(codes.codes[0, 500], (500, 1)))


@pytest.mark.parametrize("kind", ["one giant", "long tail"])
def test_a_few_far_longer_items_spoil_no_proof(kind: str, tmp_path: Path) -> None:
    embeddings = table(kind)
    path, users = model(embeddings, tmp_path), np.arange(70, 86)
    got, fallbacks = ask(path, users, 10)
    assert fallbacks.tolist() == [0] * len(users)
    scores = embeddings[users] @ embeddings.T
    assert difference(got, scores, 10, 1e-4 * float(scores.max())) is None
    # What is best for most of them is one of those items.
    best = int(np.bincount(scores.argmax(axis=1)).argmax())
    pairs = [(row, best) for row in range(0, len(users), 2)]
    without = ModelFile(path).rank([[int(user)] for user in users], 10, pairs)
    assert difference(without, masked(scores, pairs, None), 10, 1e-4 * float(scores.max())) is None


@pytest.mark.parametrize("kind", ["one giant", "long tail"])
def test_no_far_longer_item_scores_more_than_its_block(kind: str, tmp_path: Path) -> None:
    embeddings, users = table(kind), np.arange(70, 86)
    session = ort.InferenceSession(model(embeddings, tmp_path))
    size = block_of(session)
    assert size is not None
    feeds = {
        "user_history": users[:, None],
        "history_length": np.ones(len(users), np.int64),
        "k": np.array([10]),
        "excluded": np.zeros((0, 2), np.int64),
        "candidates": np.zeros((len(users), 0), np.int64),
        "candidates_length": np.zeros(len(users), np.int64),
        "bounded": np.array([1, 5, 7]),
    }
    (bounds,) = session.run(["bounds"], feeds)
    full = ITEMS // size
    scores = embeddings[users[[1, 5, 7]]] @ embeddings[: full * size].T
    assert (bounds >= scores.reshape(3, full, size).max(axis=2)).all()
    assert np.median(bounds) < scores.max() / 10


@pytest.mark.parametrize("kind", ["uniform", "normal", "uneven columns", "one giant"])
def test_the_codes_know_their_own_error(kind: str) -> None:
    embeddings = table(kind)
    layout = Layout(ITEMS, SIZE)
    codes = Codes.of(pack(embeddings, None, layout), layout)
    coded = codes.codes.reshape(-1, SIZE)[:ITEMS].astype(np.float64) - ZERO
    again = codes.middle.astype(np.float64) + coded * codes.step.astype(np.float64)
    errors = np.delete(np.linalg.norm(embeddings - again, axis=1), codes.long)
    assert errors.max() == pytest.approx(codes.item_error)
    assert np.abs(coded).max() <= 127


@pytest.mark.parametrize(("items", "bias"), [(20_000, False), (20_001, True), (70_003, False)])
def test_ties_go_to_the_lower_id(items: int, *, bias: bool) -> None:
    check_ties(items, 8 + bias, 1_000, bias=bias, coarse=True)


@pytest.mark.slow
def test_an_export_with_coarse_scores_passes_its_own_check(tmp_path: Path) -> None:
    path = export_model(ExportOptions(items=30_000, coarse="int8", output=tmp_path / "10_model.onnx"))
    plain = export_model(ExportOptions(items=30_000, output=tmp_path / "plain" / "10_model.onnx"))
    one, other = (ModelFile(each).rank([[1, 2, 3]], 10) for each in (path, plain))
    assert np.array_equal(one.ids, other.ids)


def test_too_small_a_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="coarse is 'int8', but 1000 items are too few"):
        export_model(ExportOptions(items=1_000, coarse="int8", output=tmp_path / "10_model.onnx"))
