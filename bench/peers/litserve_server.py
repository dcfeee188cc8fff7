"""The model behind LitServe, as its page on batching has it: JSON over HTTP/1.1, one worker process."""

from __future__ import annotations

from typing import Any

import litserve

from bench.peers.ranker import BATCH, PORT, WAIT_MS, Ranker


class Recommend(litserve.LitAPI):  # type: ignore[misc]
    """One process with a session."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model."""
        self._ranker = Ranker()

    def decode_request(self, request) -> Any:  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN401
        """The history of a request; without an annotation LitServe reads the body as JSON."""
        return request["item_ids"]

    def batch(self, inputs: list[list[int]]) -> list[list[int]]:
        """Histories are of any length, so they stay lists."""
        return inputs

    def predict(self, x: list[list[int]]) -> list[dict[str, list[float]]]:
        """Rank for every request of a batch."""
        return self._ranker.told(x)

    def unbatch(self, output: list[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
        """One answer a request."""
        return output

    def encode_response(self, output: dict[str, list[float]]) -> dict[str, list[float]]:
        """As JSON."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Recommend(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1e3), accelerator="cpu")
    server.run(host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False)
