"""The networks of the importers score as those do that the libraries train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from recommender.export.errors import ExportError
from recommender.export.networks.inputs import padded
from recommender.importers.forms import network_of
from recommender.importers.handover import Handover, Ranked
from recommender.importers.networks.numbers import Array
from tests.support.trained import ITEMS, LONGEST, TRANSFORMERS, RecToolsTimedHstu, Theirs

HISTORIES = [[3, 1, 2], [0], [5, 5, 39, 3, 2, 8, 4], [9, 1], list(range(LONGEST - 1))]
USERS = 6


def told(form: str, sizes: dict[str, str | int | float | bool | None], items: int = ITEMS) -> Handover:
    return Handover(
        format=1,
        library="a library",
        library_version="1",
        network="Network",
        form=form,
        sizes=sizes,
        parameters={},
        items=items,
        rankings=tuple(Ranked(history=tuple(history), items=()) for history in HISTORIES),
    )


def made(told: Handover, arrays: Mapping[str, Array]) -> nn.Module:
    """The network of a hand-over that is all arrays, so in no folder."""
    return network_of(told, arrays, Path())


def scored(network: nn.Module, histories: Sequence[Sequence[int]], *more: torch.Tensor) -> torch.Tensor:
    """Scores of all items, the histories in one batch."""
    ids, lengths = padded(histories)
    with torch.no_grad():
        users: torch.Tensor = network(torch.from_numpy(ids), torch.from_numpy(lengths), *more)
        embeddings = getattr(network, "item_embeddings", None)
        if embeddings is None:
            return users
        bias = getattr(network, "item_bias", None)
        scores: torch.Tensor = users @ embeddings().T + (0 if bias is None else bias())
        return scores


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_transformer_or_gru_scores_in_a_batch_as_the_librarys_does_alone(kind: type[Theirs]) -> None:
    torch.manual_seed(3)
    theirs = kind().eval()
    longest = LONGEST - (kind.__name__ == "RecToolsBert4Rec")
    histories = [*HISTORIES, list(range(longest))]

    ours = made(told(kind.form, theirs.sizes), theirs.arrays())  # type: ignore[arg-type]  # arrays of numbers

    assert getattr(ours, "longest_history", None) == longest
    with torch.no_grad():
        wanted = torch.stack([theirs.scores(history) for history in histories])
    torch.testing.assert_close(scored(ours, histories), wanted, rtol=1e-4, atol=1e-4)


def test_hstu_reads_the_times_of_items_and_of_the_request() -> None:
    torch.manual_seed(5)
    theirs = RecToolsTimedHstu().eval()
    ours = made(told(theirs.form, theirs.sizes), theirs.arrays())  # type: ignore[arg-type]  # arrays of numbers
    random = np.random.default_rng(7)
    seconds = [1_600_000_000 + (10.0 ** random.uniform(0, 6, len(each) + 1)).cumsum().astype(int) for each in HISTORIES]
    times = torch.from_numpy(padded([(each[:-1] * 1000 + 999).tolist() for each in seconds])[0])
    asked = torch.tensor([int(each[-1]) * 1000 for each in seconds])

    def wanted(moments: Sequence[npt.NDArray[np.int64]]) -> torch.Tensor:
        with torch.no_grad():
            pairs = zip(HISTORIES, moments, strict=True)
            return torch.stack([theirs.scores(history, own.tolist()) for history, own in pairs])

    torch.testing.assert_close(scored(ours, HISTORIES, times, asked), wanted(seconds), rtol=1e-4, atol=1e-4)
    at_once = [np.array([*each[:-1], each[-2]]) for each in seconds]
    got = scored(ours, HISTORIES, times, torch.zeros_like(asked))
    torch.testing.assert_close(got, wanted(at_once), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, wanted(seconds), atol=1e-3)


def factors() -> dict[str, Array]:
    random = np.random.default_rng(5)
    return {
        "item_factors": random.normal(size=(ITEMS, 8)).astype(np.float32),
        "user_factors": random.normal(size=(USERS, 8)).astype(np.float32),
    }


def folded_in(
    factors: dict[str, Array], history: Sequence[int], alpha: float, regularization: float
) -> npt.NDArray[np.float64]:
    """implicit's normal equations, solved by NumPy; an item counts once."""
    items = factors["item_factors"].astype(np.float64)
    own = items[sorted(set(history))]
    left = items.T @ items + regularization * np.eye(8) + (alpha - 1) * own.T @ own
    found: npt.NDArray[np.float64] = np.linalg.solve(left, alpha * own.sum(axis=0))
    return found


@pytest.mark.parametrize("alpha", [40.0, 1.0, 0.5])
def test_als_takes_known_users_by_number_and_folds_new_ones_in(alpha: float) -> None:
    given = factors()
    ours = made(told("implicit.als", {"alpha": alpha, "regularization": 0.05}), dict(given))
    histories = [*HISTORIES, [7, 7, 7, 1]]
    new = scored(ours, histories, torch.zeros(len(histories), dtype=torch.int64))
    known = scored(ours, histories, torch.full((len(histories),), USERS))

    wanted = np.stack([folded_in(given, history, alpha, 0.05) for history in histories])
    np.testing.assert_allclose(new.numpy(), wanted @ given["item_factors"].T.astype(np.float64), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(known[0], given["item_factors"] @ given["user_factors"][-1], rtol=1e-5, atol=1e-5)


def test_als_folds_nobody_in_to_nothing() -> None:
    ours = made(told("implicit.als", {"alpha": 2.0, "regularization": 0.05}), factors())

    assert not scored(ours, [[]], torch.zeros(1, dtype=torch.int64)).any()


def test_bpr_takes_the_mean_of_a_new_users_items_with_a_bias_of_one() -> None:
    given = factors()
    ours = made(told("implicit.bpr", {}), dict(given))

    user = given["item_factors"][[3, 1, 2]].mean(axis=0)
    user[-1] = 1.0
    new = scored(ours, [[3, 1, 2]], torch.zeros(1, dtype=torch.int64))
    np.testing.assert_allclose(new[0], given["item_factors"] @ user, rtol=1e-5, atol=1e-5)


def test_a_similarity_counts_an_item_once() -> None:
    weights = np.random.default_rng(1).random((ITEMS, ITEMS), np.float32) * (np.arange(ITEMS) % 3 == 0)
    rows, columns = np.nonzero(weights)
    sparse: dict[str, Array] = {
        "indptr": np.searchsorted(rows, np.arange(ITEMS + 1)).astype(np.int32),
        "indices": columns.astype(np.int32),
        "data": weights[rows, columns],
    }
    for ours in (
        made(told("similarity.sparse", {}), sparse),
        made(told("similarity.dense", {}), {"weights": weights}),
    ):
        np.testing.assert_allclose(scored(ours, [[5, 5, 2]])[0], weights[5] + weights[2], rtol=1e-5)


def without(name: str) -> Callable[[dict[str, Array]], None]:
    def change(arrays: dict[str, Array]) -> None:
        del arrays[name]

    return change


def put(name: str, value: Array) -> Callable[[dict[str, Array]], None]:
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("dense.bias"), "has no 'dense.bias': it is of another class or version"),
        (put("attention.weight", np.zeros((2, 2), np.float32)), "no place for: attention.weight"),
        (put("dense.bias", np.zeros(3, np.float32)), r"'dense.bias' .* is \[3\]; expected is \[8\]"),
        (put("dense.bias", np.full(8, np.nan, np.float32)), "holds NaN or infinity 8 times; the training has diverged"),
        (put("dense.bias", np.array(["x"] * 8)), "must be numbers"),
    ],
)
def test_numbers_that_are_not_the_networks_are_refused(
    change: Callable[[dict[str, Array]], None], sentence: str
) -> None:
    theirs = TRANSFORMERS[2]()
    arrays = dict(theirs.arrays())
    change(arrays)  # type: ignore[arg-type]  # arrays of numbers

    with pytest.raises(ExportError, match=sentence):
        made(told(theirs.form, theirs.sizes), arrays)  # type: ignore[arg-type]  # the same


@pytest.mark.parametrize(
    ("form", "sizes", "sentence"),
    [
        ("recbole.gru4rec", {"num_layers": "2"}, "MAX_ITEM_LIST_LENGTH = None; expected is a whole number"),
        ("implicit.als", {"alpha": True}, "alpha = True; expected is a number"),
        ("implicit.als", {"alpha": 0.0, "regularization": 0.1}, "cannot fold users in"),
        ("rectools.tiger", {}, "no network of this version"),
    ],
)
def test_sizes_that_are_not_the_networks_are_refused(
    form: str, sizes: dict[str, str | int | float | bool | None], sentence: str
) -> None:
    arrays = factors() if form == "implicit.als" else {}

    with pytest.raises(ExportError, match=sentence):
        made(told(form, sizes), arrays)


def test_a_similarity_of_many_items_is_refused() -> None:
    large: dict[str, Array] = {"indptr": np.zeros(10_002, np.int64)}

    with pytest.raises(ExportError, match=r"10,001 items with each other.* At most 10,000"):
        made(told("similarity.sparse", {}), large)
