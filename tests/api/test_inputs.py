"""Features, types and times for models that take none, and requests that are invalid for every model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from recommender.client import Client, Recommendations, Request, feature_value
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.serving import Serve, Shared
from tests.support.statuses import status_of_call, violations_of
from tests.support.versions import K, answer_of, write_version

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_version(tmp_path_factory.mktemp("models") / "plain" / "1", 1).parent


@pytest.fixture
async def client(shared: Shared, folder: Path) -> AsyncIterator[Client]:
    async with Client(f"127.0.0.1:{shared(model=f'{folder}@1', num_recommendations=K).port}") as client:
        yield client


async def refusal(client: Client, **options: object) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.recommend([1, 2], timeout=TIMEOUT, **options)  # type: ignore[arg-type]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return violations_of(status_of_call(refused.value))


UNTAKEN = {"features": {"age": 3}, "history_type_ids": [1, 2], "history_times": [5, 6]}


async def test_inputs_that_a_model_does_not_take_are_refused_by_name(client: Client) -> None:
    takes = "model plain@1 takes no"

    assert await refusal(client, **UNTAKEN) == {
        "features[age]": f"{takes} features: leave features[age] out",
        "history_type_ids": f"{takes} types of events: leave history_type_ids out",
        "history_times": f"{takes} times: leave history_times out",
    }
    assert list(await refusal(client, history_type_keys=["view", "view"])) == ["history_type_keys"]


async def test_inputs_that_a_model_does_not_take_can_be_reported_instead(serve: Serve, folder: Path) -> None:
    async with (
        serve(model=f"{folder}@1", num_recommendations=K, unknown_inputs="report") as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        answer = await client.recommend([1, 2], timeout=TIMEOUT, **UNTAKEN)  # type: ignore[arg-type]

    assert answer.item_ids == answer_of(1, (1, 2))
    assert answer.ignored_inputs == ("features[age]", "history_type_ids", "history_times")


HOSTILE = {
    "10,000 features": ({"features": {f"f{number}": 1 for number in range(10_000)}}, "features", "at most 256"),
    "a name of 1 MB": ({"features": {"n" * (1 << 20): 1}}, f"features[{'n' * 80}…]", "at most 128 bytes"),
    "no name": ({"features": {"": 1}}, "features[]", "at least 1 char"),
    "a string of 1 MB": ({"features": {"a": "x" * (1 << 20)}}, "features[a].string_value", "at most 1024 bytes"),
    "strings of 1 MB": ({"features": {"a": ["x", "x" * (1 << 20)]}}, "features[a].string_list.values[1]", "1024 bytes"),
    "NaN": ({"features": {"a": float("nan")}}, "features[a].double_value", "must be finite"),
    "infinities": ({"features": {"a": [0.5, float("-inf")]}}, "features[a].double_list.values[1]", "must be finite"),
    "a long list": ({"features": {"a": [1] * 4097}}, "features[a].int64_list.values", "no more than 4096 item"),
    "types by ids and keys": ({"history_type_ids": [1, 2], "history_type_keys": ["a", "b"]}, "", "only one of"),
    "a negative type": ({"history_type_ids": [1, -1]}, "history_type_ids[1]", "greater than or equal to 0, not -1"),
    "a long type": ({"history_type_keys": ["a", "b" * 257]}, "history_type_keys[1]", "at most 256 bytes"),
    "a time before 1970": ({"history_times": [5, -5]}, "history_times[1]", "greater than or equal to 0, not -5"),
    "types of other items": (
        {"history_type_ids": [1]},
        "history_type_ids",
        "its length is 1 and that of the history 2: give one value for each item, in its order",
    ),
    "more times than items": (
        {"history_times": [1, 2, 3]},
        "history_times",
        "its length is 3 and that of the history 2",
    ),
    "many times": ({"history_times": [1] * 5000}, "history_times", "5000 items are more than the 4096"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_inputs_that_cannot_be_are_refused_with_a_sentence(client: Client, hostile: str) -> None:
    options, field, sentence = HOSTILE[hostile]
    found = await refusal(client, **options)  # type: ignore[arg-type]

    assert next(iter(found)) == field
    assert sentence in found[field]
    assert sum(map(len, (*found, *found.values()))) < 2000


async def test_a_feature_without_a_value_is_refused(client: Client) -> None:
    request = Request(item_ids=[1], features={"a": api.FeatureValue()})
    _, refused = await client.recommend_many([Request(item_ids=[1]), request], timeout=TIMEOUT)

    assert not isinstance(refused, Recommendations)
    assert refused.message.startswith("features[a].value: ")


def test_the_client_finds_the_type_of_a_feature() -> None:
    assert feature_value(value=True) == api.FeatureValue(bool_value=True)
    assert feature_value(2) == api.FeatureValue(int64_value=2)
    assert feature_value(2.0) == api.FeatureValue(double_value=2.0)
    assert feature_value("2") == api.FeatureValue(string_value="2")
    assert feature_value([1, 2.5]) == api.FeatureValue(double_list=api.DoubleList(values=[1, 2.5]))
    assert feature_value(["a"]) == api.FeatureValue(string_list=api.StringList(values=["a"]))
    for wrong in (b"ab", [1, "a"], [True, 1], None):
        with pytest.raises(TypeError, match="a feature is a whole number"):
            feature_value(wrong)  # type: ignore[arg-type]
