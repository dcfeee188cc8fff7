"""The model file as every server of a comparison runs it, and what its environment asks of it: nothing of one peer."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime

MODEL = os.environ["BENCH_MODEL"]
PORT = int(os.environ["BENCH_PORT"])
BATCH = int(os.environ["BENCH_BATCH"])
WAIT_MS = float(os.environ["BENCH_WAIT_MS"])
THREADS = int(os.environ["BENCH_THREADS"])
"""Of the session; 0 leaves ONNX Runtime's own settings."""
LIMIT = 10


class Ranker:
    """A session of the model."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        if THREADS:
            options.intra_op_num_threads = THREADS
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])

    def __call__(self, histories: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Item ids and scores, a row a history, best first."""
        rows = len(histories)
        padded = np.zeros((rows, max(map(len, histories))), np.int64)
        for row, history in enumerate(histories):
            padded[row, : len(history)] = history
        feed = {
            "user_history": padded,
            "history_length": np.array([*map(len, histories)], np.int64),
            "k": np.array([LIMIT], np.int64),
            "excluded": np.zeros((0, 2), np.int64),
            "candidates": np.zeros((rows, 0), np.int64),
            "candidates_length": np.zeros(rows, np.int64),
        }
        items, scores = self._session.run(["recommendations", "scores"], feed)
        return items, scores

    def told(self, histories: Sequence[Sequence[int]]) -> list[dict[str, list[float]]]:
        """The same as JSON has it, one object a history."""
        items, scores = self(histories)
        return [{"item_ids": ids, "scores": of} for ids, of in zip(items.tolist(), scores.tolist(), strict=True)]
