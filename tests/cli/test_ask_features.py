"""`recommender client --feature`: words become what the server's model takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recommender.cli.clients.features import split, typed
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.asking import asked
from tests.support.feature_models import vector_of
from tests.support.models import brute_force
from tests.support.serving import Serve
from tests.support.versions import K, embeddings_of, write_version

USERS = np.random.default_rng(3).normal(0, 1, (7, 8)).astype(np.float32)


async def test_features_are_sent_as_the_model_takes_them(serve: Serve, tmp_path: Path) -> None:
    folder = write_version(tmp_path / "shop" / "1", 1, users=USERS, featured=True).parent
    words = ("age=64", "city=köln", "level=2", "premium=True", "tastes=0.5,-2")
    async with serve(model=f"{folder}@1", num_recommendations=K) as server:
        named = [part for word in words for part in ("--feature", word)]
        answer = await asked(server, "--items", "1", "--user", "3", *named, "--json")
        wrong = await asked(server, "--items", "1", "--feature", "age=old")
        unknown = await asked(server, "--items", "1", "--feature", "colour=red")

    features = {"age": 64.0, "city": "köln", "level": 2, "premium": True, "tastes": [0.5, -2.0]}
    expected = brute_force(embeddings_of(1), (1,), K, USERS[3] + vector_of(features))[0]
    assert json.loads(answer.stdout)["item_ids"] == expected, answer.stderr
    assert (wrong.exit_code, "that cannot be sent: age takes a number, not 'old'" in wrong.stderr) == (2, True)
    assert unknown.exit_code == 1
    assert "takes no such feature, but age, city, level, premium, tastes: leave features[colour] out" in unknown.stderr


def test_words_are_read_by_what_the_server_tells_else_as_they_look() -> None:
    told = [
        api.FeatureInput(name="zip", type=api.FEATURE_TYPE_STRING),
        api.FeatureInput(name="tags", type=api.FEATURE_TYPE_STRING, width=2),
        api.FeatureInput(name="age", type=api.FEATURE_TYPE_FLOAT),
    ]

    words = split(["zip=0123", "tags=a,b", "age=3", "level=3", "price=0.5", "new=true", "town=a=b", "nan=nan"])
    assert typed(words, told) == {
        "zip": "0123",
        "tags": ["a", "b"],
        "age": 3.0,
        "level": 3,
        "price": 0.5,
        "new": True,
        "town": "a=b",
        "nan": "nan",
    }
    with pytest.raises(ValueError, match="flags takes 3 of true or false, as 1,2, not 'x,y,z'"):
        typed({"flags": "x,y,z"}, [api.FeatureInput(name="flags", type=api.FEATURE_TYPE_BOOL, width=3)])
    for word in ("age", "=3"):
        with pytest.raises(ValueError, match="is not a feature such as age=33"):
            split([word])
    with pytest.raises(ValueError, match="age is given twice"):
        split(["age=1", "age=2"])
