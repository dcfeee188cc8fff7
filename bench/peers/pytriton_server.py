"""The model behind PyTriton, as its quick start has it: Triton with its Python backend, which batches.

KServe v2 over gRPC. This says nothing of Triton's own ONNX Runtime backend, which PyTriton does not use.
"""

from __future__ import annotations

import socket

import numpy as np
import numpy.typing as npt
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers.ranker import BATCH, LIMIT, PORT, WAIT_MS, Ranker

RANKER = Ranker()


@batch  # type: ignore[untyped-decorator]
def recommend(item_ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
    """Rank for every request of a batch; Triton batches requests of the same shape only."""
    items, scores = RANKER(item_ids)  # type: ignore[arg-type]
    return {"recommendations": items, "scores": scores}


def main() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        http = bound.getsockname()[1]
    config = TritonConfig(grpc_address="127.0.0.1", grpc_port=PORT, http_address="127.0.0.1", http_port=http,
                          allow_metrics=False)  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name="recommender",
            infer_func=recommend,
            inputs=[Tensor(name="item_ids", dtype=np.int64, shape=(-1,))],
            outputs=[
                Tensor(name="recommendations", dtype=np.int64, shape=(LIMIT,)),
                Tensor(name="scores", dtype=np.float32, shape=(LIMIT,)),
            ],
            config=ModelConfig(
                max_batch_size=BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=round(WAIT_MS * 1e3))
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
