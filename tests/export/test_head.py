"""The head: exact on ties, for all shapes of catalogues, and safe with broken user vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recommender.engine.onnx_file import read_onnx_file
from recommender.export import export_model
from recommender.export.artifact import write_model
from recommender.export.check import ModelFile
from recommender.export.errors import ExportError
from recommender.export.graph import build_graph
from recommender.export.nodes import Nodes
from recommender.export.options import ExportOptions
from recommender.export.table import TABLE, Layout, pack
from recommender.export.ties import check_ties
from recommender.export.truth import brute_force


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("items", "size"),
    [(1, 1), (31, 4), (32, 4), (33, 4), (1_000, 8), (10_000, 32), (65_536, 8), (65_537, 8), (131_103, 8)],
)
def test_ties_go_to_the_lower_id(items: int, size: int, *, bias: bool) -> None:
    check_ties(items, size + bias, min(items, 1_000), bias=bias)


@pytest.mark.parametrize(("items", "bias"), [(5_000, False), (65_537, True)])
def test_a_plain_head_ranks_as_exactly(items: int, *, bias: bool) -> None:
    check_ties(items, 4 + bias, 300, bias=bias, never=bias, plain=True)


@pytest.mark.slow
def test_a_plain_head_has_one_selection_and_no_blocks(tmp_path: Path) -> None:
    options = ExportOptions(items=4_001, dim=2, max_k=10, head="plain", output=tmp_path / "10_model.onnx")
    file = read_onnx_file(export_model(options))
    assert "TopK" in file.operators
    assert not file.operators & {"ReduceMax", "Scan", "MatMulInteger"}


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("k", [3, 300])
def test_a_user_vector_without_sense_gets_no_recommendation(tmp_path: Path, broken: float, k: int) -> None:
    embeddings = np.random.default_rng(0).standard_normal((5_000, 4)).astype(np.float32)
    layout = Layout(5_000, 4)

    def encode(g: Nodes) -> str:
        first = g.op("Gather", "user_history", g.constant(np.array(0, np.int64)), axis=1)
        vectors = g.op("Gather", TABLE, first, axis=0)
        bad = g.op("Equal", first, g.int64(13))
        return g.op("Where", g.op("Unsqueeze", bad, g.int64(1)), g.float32(broken), vectors)

    model = build_graph(encode, layout, largest=float(np.abs(embeddings).max()), bias=False, metadata={})
    write_model(model, pack(embeddings, None, layout), tmp_path / "m.onnx", 1 << 30)
    got = ModelFile(tmp_path / "m.onnx").rank([[12], [13], [14]], k)
    assert (got.ids[1] == -1).all()
    assert np.isneginf(got.scores[1]).all()
    right = brute_force(embeddings[[12, 14]] @ embeddings.T, k)
    assert np.array_equal(got.ids[[0, 2]], right.ids)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_table_with_nan_or_infinity_is_refused(value: float) -> None:
    embeddings = np.zeros((7, 2), np.float32)
    embeddings[3, 1] = value
    with pytest.raises(ExportError, match=r"NaN or infinity for 1 of 7 items \(the first: item 3\)"):
        pack(embeddings, None, Layout(7, 2))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"items": 0}, "items is 0; give a number of at least 1"),
        ({"num_recommendations": -1}, "num_recommendations is -1"),
        ({"max_k": 5}, "max_k is 5, below num_recommendations = 10"),
        ({"coarse": "int4"}, "coarse is 'int4'; give 'auto', 'none' or 'int8'"),
        ({"head": "tall"}, "head is 'tall'; give 'blocks' or 'plain'"),
        ({"head": "plain", "coarse": "int8"}, "coarse is 'int8', which needs blocks"),
        ({"name": "a b"}, "name is 'a b'"),
        ({"version": ""}, "version is ''"),
    ],
)
def test_options_without_sense_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        ExportOptions(**options)  # type: ignore[arg-type]
