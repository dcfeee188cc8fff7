"""Bounds of blocks: no item scores more than its block's, and rows that ask for them cost the others nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from recommender.engine.coarse import EVERY_BATCH, NO_BATCH
from recommender.engine.masked.bounds import block_of
from tests.support.whole_numbers import embeddings, exported

WAYS = {"float32": (70_007, False), "8 bits": (20_003, True)}


def ask(
    session: onnxruntime.InferenceSession, users: list[int], bounded: list[int], k: int = 5, *, coarse: bool
) -> list[npt.NDArray[np.float32]]:
    rows = len(users)
    feed = {
        "user_history": np.array(users)[:, None],
        "history_length": np.ones(rows, np.int64),
        "k": np.array([k]),
        "excluded": np.zeros((0, 2), np.int64),
        "candidates": np.zeros((rows, 0), np.int64),
        "candidates_length": np.zeros(rows, np.int64),
        "bounded": np.array(bounded, np.int64),
    }
    if any(port.name == "coarse_rows" for port in session.get_overridable_initializers()):
        feed["coarse_rows"] = EVERY_BATCH if coarse else NO_BATCH
    found: list[npt.NDArray[np.float32]] = session.run(["recommendations", "scores", "bounds"], feed)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [3, 45])
def test_no_item_scores_more_than_its_block(way: str, rows: int, tmp_path: Path) -> None:
    items, coarse = WAYS[way]
    session = onnxruntime.InferenceSession(exported(tmp_path / "10_model.onnx", items, coarse=coarse))
    size = block_of(session)
    assert size is not None
    table, users, bounded = embeddings(items), list(range(rows)), [0, rows - 1]
    full = items // size
    right = (table[bounded] @ table[: full * size].T).reshape(2, full, size).max(axis=2)
    for from_8_bits in {coarse, False}:
        alone = ask(session, users, [], coarse=from_8_bits)
        beside = ask(session, users, bounded, coarse=from_8_bits)
        every = ask(session, users, users, coarse=from_8_bits)
        assert beside[0][1:-1].tolist() == alone[0][1:-1].tolist()
        assert alone[2].shape[0] == 0
        assert (beside[2] >= right).all()
        assert from_8_bits or beside[2].tolist() == right.tolist()
        assert every[2][bounded].tolist() == beside[2].tolist()


def test_a_run_that_does_not_go_by_blocks_gives_no_bounds(tmp_path: Path) -> None:
    items, coarse = WAYS["8 bits"]
    session = onnxruntime.InferenceSession(exported(tmp_path / "10_model.onnx", items, coarse=coarse))
    assert ask(session, [1, 2], [0], k=300, coarse=True)[2].shape[0] == 0
