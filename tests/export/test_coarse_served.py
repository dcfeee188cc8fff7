"""A model with a coarse table is served like any other, and ranks as the one without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recommender.engine.contract import Contract, Port
from recommender.export import ExportOptions, export_model
from recommender.export.check import ModelFile


def test_the_contract_knows_what_a_coarse_model_tells_besides() -> None:
    inputs = {"user_history": Port("tensor(int64)", 2), "history_length": Port("tensor(int64)", 1)}
    outputs = {
        "recommendations": Port("tensor(int64)", 2),
        "scores": Port("tensor(float)", 2),
        "fallbacks": Port("tensor(int64)", 1),
    }
    assert Contract.of(inputs, outputs).batched


@pytest.mark.slow
def test_a_coarse_model_ranks_as_the_exact_one(tmp_path: Path) -> None:
    options = ExportOptions(items=300_000, dim=16, output=tmp_path / "exact.onnx")
    exact = ModelFile(export_model(options))
    coarse = ModelFile(export_model(replace(options, coarse="int8", output=tmp_path / "coarse.onnx")))
    random = np.random.default_rng(0)
    for rows in (1, 3, 40):
        histories = [random.integers(0, 300_000, 5).tolist() for _ in range(rows)]
        excluded = sorted((0, int(item)) for item in exact.rank(histories, 4).ids[0])
        for k in (1, 10, 100):
            for pairs in ([], excluded):
                one, other = exact.rank(histories, k, pairs), coarse.rank(histories, k, pairs)
                assert np.allclose(one.scores, other.scores, rtol=0, atol=1e-4)
                # Scores within the tolerance may change places.
                assert (one.ids == other.ids).mean() > 0.9
