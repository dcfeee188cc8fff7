"""Tables of requests for bulk scoring, and their answers from a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pyarrow as pa

from recommender.client import feature_value
from recommender.domain import Ranking
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc

_CALL_ROWS = 500
_CALL_SECONDS = 120.0
_KINDS = {
    "user": pa.int64(),
    "item_ids": pa.list_(pa.int64()),
    "item_keys": pa.list_(pa.string()),
    "limit": pa.int32(),
    "excluded_item_ids": pa.list_(pa.int64()),
    "excluded_item_keys": pa.list_(pa.string()),
    "candidate_item_ids": pa.list_(pa.int64()),
    "history_type_ids": pa.list_(pa.int64()),
    "history_times": pa.list_(pa.int64()),
}


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A table of these rows; each has the values of its request by the columns' names."""
    names = dict.fromkeys(name for row in rows for name in row)
    kinds = {**_KINDS, "user": pa.string() if isinstance(rows[0].get("user"), str) else pa.int64()}
    return pa.table({name: pa.array([row.get(name) for row in rows], kinds.get(name)) for name in names})


def online(port: int, rows: Sequence[dict[str, Any]], *, exclude_history: bool = False) -> list[api.RecommendResult]:
    """What a server answers to the same rows."""
    results: list[api.RecommendResult] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = api_grpc.RecommenderServiceStub(channel)
        for start in range(0, len(rows), _CALL_ROWS):
            requests = [_request(row, exclude_history) for row in rows[start : start + _CALL_ROWS]]
            reply = stub.BatchRecommend(api.BatchRecommendRequest(requests=requests), timeout=_CALL_SECONDS)
            results += reply.results
    return results


def assert_same(scored: pa.Table, results: Sequence[api.RecommendResult], tolerance: float) -> None:
    """Every row of a scored table has the answer, or the error, that the server gave."""
    rows = scored.to_pylist()
    assert len(rows) == len(results)
    for place, (row, result) in enumerate(zip(rows, results, strict=True)):
        if result.WhichOneof("outcome") == "error":
            assert row["error"] == result.error.message, place
            assert row["item_ids"] is None, place
            continue
        reply = result.response
        assert row["error"] is None, (place, row["error"])
        theirs = Ranking(list(reply.item_ids), list(reply.scores))
        assert Ranking(row["item_ids"], row["scores"]).equals(theirs, tolerance), (place, row, reply)
        assert row["source"] == api.Source.Name(reply.source).removeprefix("SOURCE_").lower(), place
        assert (row["unknown_item_ids"] or []) == list(reply.unknown_item_ids), place
        assert (row["unknown_item_keys"] or []) == list(reply.unknown_item_keys), place
        assert (row["unknown_user"], row["model_version"]) == (reply.unknown_user, reply.model_version), place
        if "item_keys" in row and theirs.item_ids == row["item_ids"]:
            assert row["item_keys"] == list(reply.item_keys), place


def _request(row: dict[str, Any], exclude_history: bool) -> api.RecommendRequest:  # noqa: FBT001 (of the job)
    told = {name: value for name, value in row.items() if value is not None and name != "user"}
    request = {name: told.pop(name) for name in (*told,) if name in api.RecommendRequest.DESCRIPTOR.fields_by_name}
    request["filter_parameters"] = {
        name: feature_value(value) for name, value in request.get("filter_parameters", {}).items()
    }
    request["features"] = {name: feature_value(value) for name, value in told.items()}
    if (user := row.get("user")) is not None:
        request["user_key" if isinstance(user, str) else "user_id"] = user
    return api.RecommendRequest(**request, exclude_history=exclude_history)
