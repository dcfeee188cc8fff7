"""The model behind MLServer, as its page on custom runtimes has it: KServe v2 over gRPC.

With parallel inference, the default, the model runs in a separate worker process.
"""

from __future__ import annotations

import asyncio
import socket

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from bench.peers.ranker import BATCH, PORT, WAIT_MS, Ranker


class Recommend(MLModel):  # type: ignore[misc]
    """A custom runtime with a session."""

    async def load(self) -> bool:
        """Load the model."""
        self._ranker = Ranker()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Rank for every row; requests that were batched come as one."""
        items, scores = self._ranker(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output("recommendations", items),
                NumpyCodec.encode_output("scores", scores.astype(np.float32)),
            ],
        )


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


async def main() -> None:
    settings = Settings(host="127.0.0.1", grpc_port=PORT, http_port=free_port(), metrics_port=free_port(), debug=False)
    model = ModelSettings(
        name="recommender",
        implementation="bench.peers.mlserver_server.Recommend",
        max_batch_size=BATCH,
        max_batch_time=WAIT_MS / 1e3,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
