"""Versions of models in the form that a repository or a registry holds them: `model.onnx` with its `card.json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recommender.batching.batcher import Batcher
from recommender.domain import Model, UnknownUsers
from recommender.models.card import CARD_NAME, MODEL_NAME, Card, CardFile, FileRole, Golden, file_sha256
from recommender.models.fallback import write_fallback
from recommender.models.version import Version
from recommender.models.vocabulary import write_vocabulary
from tests.support.feature_models import DECLARED, add_features, vector_of
from tests.support.models import brute_force, table, write_model

K = 5
UNTRIED = 38
"""An item of a catalogue of 50 that no trial of a version puts into a history."""
MORNING = 1_700_000_000_000
"""A time in the histories of golden answers, in Unix milliseconds."""
HISTORIES = ((1, 2, 3), (0,), (49, 7))


def version_of(batcher: Batcher, *, version: str = "1", items: int = 50, **changes: Any) -> Version:
    """A version `shop@…` that can do everything, without a model file behind its batcher."""
    facts: dict[str, Any] = {
        "model": Model("shop", version, items, default_k=3, max_k=20, longest_history=16, score_tolerance=0.0),
        "batcher": batcher,
        "abilities": frozenset({"k", "excluded", "candidates", "scores"}),
        "sha256": "0" * 64,
        "embedding_size": 8,
        "execution_provider": "CPUExecutionProvider",
        "loaded_at": datetime(2026, 1, 1, tzinfo=UTC),
        "limit": 3,
        "plain_history": 16,
        "plain_items": items,
        "plain_beside": items,
        "label": f"shop@{version}",
        "close_engine": lambda: True,
        "measured": (),
    }
    return Version(**(facts | changes))


def embeddings_of(version: int, items: int = 50) -> npt.NDArray[np.float32]:
    """The item embeddings of a test's version."""
    return table(items, seed=version)


def answer_of(version: int, history: tuple[int, ...] = (1, 2, 3), k: int = K) -> tuple[int, ...]:
    """What a test's version answers to a history."""
    return tuple(brute_force(embeddings_of(version), history, k)[0])


def write_version(
    folder: Path,
    version: int,
    *,
    items: int = 50,
    burn: int = 0,
    fails_on: int | None = None,
    flaws: Mapping[int, float] | None = None,
    keys: int = 0,
    fallback: tuple[int, ...] = (),
    external: bool = False,
    users: npt.NDArray[np.float32] | None = None,
    user_keys: Sequence[str] = (),
    first_user: int = 1,
    unknown_user: UnknownUsers = "row",
    types: npt.NDArray[np.float32] | None = None,
    type_keys: Sequence[str] = (),
    timed: bool = False,
    featured: bool = False,
    spoil: Callable[[Path], None] = lambda _: None,
    **changes: Any,
) -> Path:
    """Write a version into `folder`, complete or not at all. `spoil` may change the files, `changes` the card.

    Its embeddings are `embeddings_of(version)`. With `keys` it has a vocabulary of that many. `external` puts the
    numbers into a separate file. `users` are what the model adds for users, row 0 for unknown ones unless that is the
    `first_user`. `types` and `timed` are those of `batched` in `tests.support.models`; row 0 of `types` is for unknown
    ones. The card's defaults for them are the caller's `changes`. If it is `featured` it also takes the features of
    `feature_models`.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    embeddings = embeddings_of(version, items)
    model = write_model(
        draft / MODEL_NAME,
        embeddings,
        default_k=K,
        burn=burn,
        fails_on=fails_on,
        flaws=flaws,
        external=external,
        users=users,
        types=types,
        timed=timed,
    )
    files: dict[Path, FileRole] = {model: "model"}
    if external:
        files[model.with_name(f"{model.name}.data")] = "external_data"
    if keys:
        path = model.with_suffix(".keys")
        write_vocabulary([f"v{version}-{item}" for item in range(keys)], path)
        files[path] = "vocabulary"
    if fallback:
        path = model.with_suffix(".fallback.txt")
        write_fallback(fallback, path)
        files[path] = "fallback"
    if user_keys:
        path = model.with_suffix(".users")
        write_vocabulary(user_keys, path)
        files[path] = "user_vocabulary"
    if type_keys:
        path = model.with_suffix(".types")
        write_vocabulary(type_keys, path)
        files[path] = "type_vocabulary"
    if featured:
        files[add_features(model)] = "feature_vocabulary"
    golden = []
    for user, history in enumerate(HISTORIES):
        of_user, number = (None, 0) if users is None else (users[user], user)
        kinds = () if types is None else tuple((user + item) % len(types) for item in history)
        times = tuple(MORNING + 1000 * user * item for item in history) if timed else ()
        given = {"level": user, "tastes": (0.5, -1.0)} if featured else {}
        if featured and of_user is not None:
            of_user = of_user + vector_of(given)
        of_types = None if types is None else types[list(kinds)]
        ids, scores = brute_force(embeddings, history, K, of_user, of_types=of_types, times=times)
        asked = {"item_ids": history, "user": number, "history_types": kinds, "history_times": times, "features": given}
        golden.append(Golden.model_validate({**asked, "recommendations": ids, "scores": scores}))
    card = Card.model_validate(
        {
            "name": "test",
            "version": str(version),
            "network": "hand made",
            "items": items,
            "embedding_size": embeddings.shape[1],
            "default_k": K,
            "max_k": items,
            "score_tolerance": 1e-4,
            "opset": 18,
            "exported_by": "a test",
            "exported_at": "2026-01-01T00:00:00Z",
            "exported_with": {},
            "users": None
            if users is None
            else {"count": len(users) - first_user, "first": first_user, "unknown": unknown_user},
            "history_types": None if types is None else {"count": len(types) - 1},
            "history_times": {} if timed else None,
            "features": DECLARED if featured else (),
            "files": [
                CardFile(path=path.name, role=role, size=path.stat().st_size, sha256=file_sha256(path))
                for path, role in files.items()
            ],
            "golden": golden,
        }
        | changes
    )
    (draft / CARD_NAME).write_text(json.dumps(card.model_dump(mode="json")), encoding="utf-8")
    spoil(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
    return folder


def alter(folder: Path) -> None:
    """Flip one bit of a version's model file."""
    content = bytearray((folder / MODEL_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / MODEL_NAME).chmod(0o600)  # the cache's own copies are for reading
    (folder / MODEL_NAME).write_bytes(content)
