"""`recommender import`: plain files and hand-overs become model files that rank alike, or nothing is written."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recommender.export.check import ModelFile
from recommender.importers import script_of
from recommender.importers.handover import ARRAYS, HANDOVER
from recommender.models.artifact import open_artifact
from recommender.models.fallback import read_fallback
from recommender.models.vocabulary import Vocabulary
from tests.importers.conftest import ITEMS, Imported, run

USERS, DIM = 12, 4


def test_vectors_are_served_by_their_keys_with_where_they_came_from(imported: Imported) -> None:
    artifact = open_artifact(imported.model)
    card = artifact.card
    assert card is not None
    assert (card.name, card.items, card.exported_by, len(card.parity)) == ("shop", ITEMS, "recommender import", 256)
    assert card.origin is not None
    assert card.origin.library == "vectors"
    assert card.origin.data_sha256 == hashlib.sha256(imported.interactions.read_bytes()).hexdigest()
    assert artifact.vocabulary is not None
    assert Vocabulary.open(artifact.vocabulary, ITEMS).ids(["sku-0", f"sku-{ITEMS - 1}"]) == [0, ITEMS - 1]


def test_the_fallback_list_has_what_most_users_took(imported: Imported) -> None:
    artifact = open_artifact(imported.model)
    assert artifact.fallback is not None
    taken: dict[str, set[str]] = {}
    for line in imported.interactions.read_text().splitlines()[1:]:
        user, item, _ = line.split(",")
        taken.setdefault(item, set()).add(user)
    counts = [len(taken[f"sku-{item}"]) for item in read_fallback(artifact.fallback, ITEMS)]

    assert len(counts) == len(taken)
    assert counts == sorted(counts, reverse=True)


def test_a_history_is_the_mean_of_its_vectors(imported: Imported) -> None:
    rows = np.loadtxt(imported.vectors, skiprows=1, usecols=range(1, 9))
    ranked = ModelFile(imported.model).rank([[3, 4, 4]], 10)

    assert ranked.ids[0].tolist() == np.argsort(-(rows @ rows[[3, 4, 4]].mean(axis=0)))[:10].tolist()


def test_metrics_offline_are_those_through_the_server(imported: Imported) -> None:
    offline, wire, counted = imported.told.splitlines()[-3:]

    assert offline.removeprefix("Offline: ") == wire.removeprefix("Through the server: ")
    assert counted.startswith("Of 30 users")
    assert "Left out: 0 with a tie (0.00%), 0 without a known item." in counted


def handover(folder: Path, change: Callable[[dict[str, object]], object] = lambda _: None) -> Path:
    """BPR factors as the script for implicit writes them, with a change to the facts."""
    random = np.random.default_rng(4)
    items, users = random.normal(size=(ITEMS, DIM)), random.normal(size=(USERS, DIM))
    items, users = items.astype(np.float32), users.astype(np.float32)
    asked = [row % USERS for row in range(200)]
    told: dict[str, object] = {
        "format": 1,
        "library": "implicit",
        "library_version": "0.7.3",
        "network": "BayesianPersonalizedRanking",
        "form": "implicit.bpr",
        "sizes": {},
        "parameters": {"factors": DIM - 1, "learning_rate": 0.01},
        "items": ITEMS,
        "item_keys": [f"sku-{item}" for item in range(ITEMS)],
        "users": USERS,
        "user_keys": None,
        "popular": [5, 6],
        "data_sha256": "ab" * 32,
        "rankings": [
            {"history": [row % ITEMS], "user": user, "items": np.argsort(-(items @ users[user]))[:20].tolist()}
            for row, user in enumerate(asked)
        ],
    }
    change(told)
    folder.mkdir()
    np.savez(folder / ARRAYS, item_factors=items, user_factors=users)
    (folder / HANDOVER).write_text(json.dumps(told), encoding="utf-8")
    return folder


def test_a_hand_over_keeps_users_by_the_librarys_numbers(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    never = tmp_path / "never.txt"
    never.write_text("sku-5\n", encoding="utf-8")
    code, told = run(
        "implicit", handover(tmp_path / "handover"), "--never-recommend", never, "--output", model, "--name", "bpr"
    )  # fmt: skip

    assert code == 0, told
    assert "Ranking: that of implicit 0.7.3 for 200 histories, the best 10 of each." in told
    artifact = open_artifact(model)
    assert artifact.card is not None
    assert artifact.card.users is not None
    assert (artifact.card.users.count, artifact.card.users.unknown) == (USERS, "history")
    assert artifact.card.origin is not None
    assert artifact.card.origin.parameters == {"factors": DIM - 1, "learning_rate": 0.01}
    assert artifact.card.origin.data_sha256 == "ab" * 32
    assert artifact.user_vocabulary is not None
    assert Vocabulary.open(artifact.user_vocabulary, USERS, "user").ids(["0", str(USERS - 1)]) == [0, USERS - 1]
    assert artifact.fallback is not None
    assert artifact.card.never_recommended == (5,)
    assert list(read_fallback(artifact.fallback, ITEMS)) == [6]


def with_times(told: dict[str, object]) -> None:
    """Rankings of a model that reads times."""
    rankings = told["rankings"]
    assert isinstance(rankings, list)
    for each in rankings:
        each["times"] = [5] * (len(each["history"]) + 1)


def test_interactions_without_times_are_refused_for_a_model_that_reads_them(tmp_path: Path) -> None:
    data = tmp_path / "log.csv"
    data.write_text("user_id,item_id\na,sku-1\na,sku-2\n", encoding="utf-8")
    code, told = run(
        "implicit", handover(tmp_path / "handover", with_times), "--interactions", data,
        "--output", tmp_path / "out" / "model.onnx",
    )  # fmt: skip

    assert code == 2
    assert "The model reads times, and the interactions have none; give a column timestamp" in told.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def without_seen(told: dict[str, object]) -> None:
    """Rankings as implicit makes them with `filter_already_liked_items=True`."""
    told.update(without_seen=True, data_sha256=None)
    rankings = told["rankings"]
    assert isinstance(rankings, list)
    for each in rankings:
        each["history"] = each["items"][:3]
        each["items"] = each["items"][3:]


def test_seen_items_are_left_out_on_both_sides(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    code, told = run("implicit", handover(tmp_path / "handover", without_seen), "--output", model, "--name", "bpr")

    assert code == 0, told
    assert "the best 10 of each, the items of the history left out on both sides." in told.replace("\n", " ")
    card = open_artifact(model).card
    assert card is not None
    assert all(each.excluded == tuple(sorted(each.item_ids)) for each in card.parity)


def test_a_card_without_a_digest_says_why(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    folder = handover(tmp_path / "handover", lambda told: told.update(data_sha256=None))
    code, told = run("implicit", folder, "--output", model, "--name", "bpr")

    assert code == 0, told
    reason = "no digest: the file does not hold its training data; give --interactions"
    assert reason in told.replace("\n", " ")
    card = open_artifact(model).card
    assert card is not None
    assert card.origin is not None
    assert (card.origin.data_sha256, card.origin.no_digest) == (None, reason)


def other_ranking(told: dict[str, object]) -> None:
    rankings = told["rankings"]
    assert isinstance(rankings, list)
    rankings[150]["items"].reverse()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda told: told.update(rankings=told["rankings"][:10]), "has ranked 10 histories; at least 200"),
        (lambda told: told["item_keys"].pop(), "there are 59 keys and 60 items"),
        (lambda told: told["popular"].append(60), "item 60 is named, and there are 60"),
        (lambda told: told.update(format=2), "format: Input should be 1"),
        (lambda told: told.update(library="recbole"), "was written by recbole; import it as recbole"),
        (lambda told: told["item_keys"].__setitem__(3, "a\nb"), "has a line break"),
    ],
)
def test_a_hand_over_that_does_not_fit_is_a_sentence_and_writes_nothing(
    change: Callable[[dict[str, object]], object], sentence: str, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "model.onnx"
    code, told = run("implicit", handover(tmp_path / "handover", change), "--output", output)

    assert code == 2
    assert sentence in told.replace("\n", " ")
    assert not output.parent.exists()


def test_what_ranks_otherwise_than_the_library_is_not_written(tmp_path: Path) -> None:
    output = tmp_path / "out" / "model.onnx"
    code, told = run("implicit", handover(tmp_path / "handover", other_ranking), "--output", output)

    assert code == 2
    assert "it does not rank as where it was trained" in told
    assert list(output.parent.iterdir()) == []


def test_a_hand_over_that_was_cut_short_is_a_sentence(tmp_path: Path) -> None:
    folder = handover(tmp_path / "handover")
    (folder / ARRAYS).write_bytes((folder / ARRAYS).read_bytes()[:200])
    code, told = run("implicit", folder, "--output", tmp_path / "model.onnx")

    assert code == 2
    assert "is no complete hand-over" in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("lightfm", "x"), "lightfm is not a known library"),
        (("rectools",), "give what to import, SOURCE"),
        (("vectors", "--script"), "vectors needs no script"),
        (("recbole", "x.pth"), "recbole itself: give the interpreter of its environment as --python"),
        (("recbole", "x.pth", "--python", "nowhere/python"), "nowhere/python cannot be run: No such file"),
        (("recbole", "x.pth", "--python", sys.executable), "cannot import what recbole needs: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    output = () if len(arguments) == 1 else ("--output", tmp_path / "model.onnx")
    code, told = run(*arguments, *output)

    assert code == 2
    assert sentence in told.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_an_environment_whose_packages_do_not_fit_each_other_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "implicit.py").write_text("import abc\nclass Model(abc.ABC, abc): pass\n", encoding="utf-8")
    np.savez(tmp_path / "model.npz", K=1, shape=(1, 1), data=[1.0], indptr=[0, 1], indices=[0])
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    output = tmp_path / "out" / "model.onnx"
    code, told = run("implicit", tmp_path / "model.npz", "--python", python, "--output", output)

    assert code == 2
    assert "TypeError: metaclass conflict" in told
    assert "The packages of this environment do not fit each other; make a new one" in told.replace("\n", " ")
    assert not output.parent.exists()


@pytest.mark.parametrize("library", ["rectools", "recbole", "implicit"])
def test_the_script_of_a_library_is_one_file_that_needs_nothing_of_ours(library: str, tmp_path: Path) -> None:
    code, script = run(library, "--script")
    assert (code, script) == (0, script_of(library))
    assert "recommender.importers" not in script
    (tmp_path / "script.py").write_text(script, encoding="utf-8")

    helped = subprocess.run([sys.executable, "-I", tmp_path / "script.py", "--help"], capture_output=True, check=False)

    assert helped.returncode == 0, helped.stderr


@pytest.mark.parametrize(
    ("write", "more", "sentence"),
    [
        (lambda path: np.save(path, np.full((5, 2), np.nan)), (), "holds NaN or infinity 10 times"),
        (lambda path: np.save(path, np.zeros(5)), (), "holds an array [5]; expected are vectors"),
        (lambda path: np.save(path, np.array([[{}]]), allow_pickle=True), (), "cannot be read as vectors"),
        (lambda path: np.save(path, np.zeros((5, 2))), ("--similarity",), "are [5, 2]; expected is one row"),
        (lambda path: np.save(path, np.zeros((5, 2))), ("--encoder", "encoder.bin"), "neither .pt2 nor .onnx"),
        (lambda path: np.save(path, np.zeros((5, 2))), ("--encoder", "none.onnx"), "none.onnx cannot be read as ONNX"),
    ],
)
def test_vectors_that_are_none_are_a_sentence(
    write: Callable[[Path], None], more: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    write(tmp_path / "vectors.npy")
    code, told = run("vectors", tmp_path / "vectors.npy", *more, "--output", tmp_path / "out" / "model.onnx")

    assert code == 2
    assert sentence in told.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def write_one_array(path: Path) -> None:
    """A .npy by the name of a .npz."""
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (
            lambda path: np.savez(path, ratings=np.zeros(3), users=np.zeros(3)),
            "by model.save(): it has ratings, users.",
        ),
        (lambda path: np.savez(path, data=np.zeros(3), indptr=np.zeros(3)), "by model.save(): it has data, indptr."),
        (
            lambda path: np.savez(path, user_factors=np.zeros((2, 2)), item_factors=np.zeros((2, 2)), learning_rate=1),
            "is no fitted ALS, BPR or item-to-item model of implicit",
        ),
        (lambda path: path.write_bytes(b"PK none"), "is no .npz that implicit's model.save() wrote"),
        (write_one_array, "is no .npz that implicit's model.save() wrote"),
    ],
)
def test_an_npz_that_implicit_did_not_write_is_a_sentence(
    write: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    write(tmp_path / "model.npz")
    code, told = run(
        "implicit", tmp_path / "model.npz", "--python", sys.executable, "--output", tmp_path / "out" / "model.onnx"
    )  # fmt: skip

    assert code == 2
    assert sentence in told.replace("\n", " ")
    assert "KeyError" not in told
    assert not (tmp_path / "out").exists()
