"""Ask for one user, without an event loop: one.py [HOST:PORT]."""

from __future__ import annotations

import sys

import grpc

from recommender import SyncClient


def main() -> None:
    """Print five items and their scores."""
    target = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
    with SyncClient(target) as client:
        try:
            answer = client.recommend([1, 2, 3, 4], limit=5, exclude_history=True, timeout=5.0)
        except grpc.RpcError as error:
            raise SystemExit(f"{error.code().name}: {error.details()}") from error
    for item, score in zip(answer.item_ids, answer.scores, strict=True):
        print(f"{item:5} {score:.2f}")
    print(f"by {answer.model_version}")


if __name__ == "__main__":
    main()
