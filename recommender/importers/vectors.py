"""Plain files: a vector for each item, from any source; the mean of a history's vectors is its user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from recommender.export.errors import ExportError
from recommender.export.obstacles import obstacle
from recommender.importers.encoders import read_encoder
from recommender.importers.handover import Handover, Ranked
from recommender.importers.interactions import Interactions
from recommender.importers.networks.mean import Mean
from recommender.importers.networks.numbers import Numbers
from recommender.importers.networks.similarity import dense
from recommender.importers.options import ImportOptions

Table: TypeAlias = npt.NDArray[np.generic]
_Scores: TypeAlias = Callable[[Sequence[int]], npt.NDArray[np.float64]]

_HISTORIES = 256
_SHOWN = 20
_LONGEST = 50


def read_vectors(options: ImportOptions, interactions: Interactions | None) -> tuple[Handover, nn.Module]:
    """Read the table, and rank some histories by NumPy in float64, or by the encoder itself.

    Raises ExportError if a file has no known format, or the files do not fit each other.
    """
    keys, table = _table(options.source)
    if options.item_keys is not None:
        if keys is not None:
            raise ExportError(f"{options.source} has keys itself; leave out --item-keys.")
        keys = options.item_keys.read_text(encoding="utf-8").splitlines()
    if keys is not None and len(keys) != len(table):
        raise ExportError(f"There are {len(keys)} keys and {len(table)} vectors; give a key for each.")
    bias = None if options.bias is None else _bias(options.bias)
    numbers = Numbers({"weights": table} if bias is None else {"weights": table, "bias": bias}, str(options.source))
    network, scores = _network(options, numbers)
    numbers.end()
    ids = None if keys is None else {key: item for item, key in enumerate(keys)}
    histories = _histories(len(table), ids, interactions, getattr(network, "longest_history", None))
    told = Handover(
        format=1,
        library="vectors",
        library_version=version("recommender"),
        network=type(network).__name__,
        form="vectors",
        sizes={},
        parameters={"items": len(table), "columns": int(table.shape[1])},
        items=len(table),
        item_keys=None if keys is None else tuple(keys),
        rankings=tuple(
            Ranked(history=tuple(history), items=tuple(np.argsort(-scores(history), kind="stable")[:_SHOWN].tolist()))
            for history in histories
        ),
    )
    return told, network


def _network(options: ImportOptions, numbers: Numbers) -> tuple[nn.Module, _Scores]:
    """The network, and the scores of all items for a history without it."""
    if options.similarity:
        if options.bias is not None or options.encoder is not None:
            raise ExportError("A similarity of items has neither a bias nor an encoder; leave them out.")
        similar = dense(numbers)
        weights = similar.weights.double().numpy()
        return similar, lambda history: weights[sorted(set(history))].sum(axis=0)
    vectors = numbers.take("weights", None, None)
    bias = numbers.take("bias", len(vectors)) if options.bias is not None else None
    rows = vectors.double().numpy()
    added = 0.0 if bias is None else bias.double().numpy()
    if options.encoder is None:
        return Mean(vectors, bias), lambda history: rows @ rows[list(history)].mean(axis=0) + added
    network = read_encoder(options.encoder, options, vectors, bias)

    def scores(history: Sequence[int]) -> npt.NDArray[np.float64]:
        try:
            with torch.no_grad():
                user = network(torch.tensor([history]), torch.tensor([len(history)]))
            found: npt.NDArray[np.float64] = rows @ user[0].double().numpy() + added
        except Exception as error:
            raise ExportError(
                f"{options.encoder} failed on a history of {len(history)} items: {obstacle(error)}. It takes "
                "user_history int64 [batch, history] and history_length int64 [batch], and yields vectors "
                f"[batch, {rows.shape[1]}]."
            ) from error
        return found

    return network, scores


def _table(path: Path) -> tuple[list[str] | None, Table]:
    """The keys, if the file has any, and the vectors [items, d]."""
    try:
        if path.suffix == ".npy":
            keys, table = None, np.load(path, allow_pickle=False)
        elif path.suffix == ".parquet":
            keys, table = _parquet(path)
        else:
            keys, table = _word2vec(path)
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(f"{path} cannot be read as vectors: {error}.") from error
    if table.ndim != 2 or not table.size:  # noqa: PLR2004
        raise ExportError(f"{path} holds an array {list(table.shape)}; expected are vectors, [items, d].")
    return keys, table


def _word2vec(path: Path) -> tuple[list[str], Table]:
    """Text of word2vec: a key and its numbers a line, with or without a first line that counts them."""
    keys: list[str] = []
    rows: list[npt.NDArray[np.float32]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            key, *values = line.rstrip().split(" ")
            if number == 1 and len(values) == 1 and key.isdecimal():
                continue
            if rows and len(values) != len(rows[0]):
                raise ExportError(
                    f"{path}, line {number}: {len(values)} numbers, and {len(rows[0])} in the lines before."
                )
            keys.append(key)
            rows.append(np.array(values, np.float32))
    return keys, np.array(rows)


def _parquet(path: Path) -> tuple[list[str] | None, Table]:
    """A column of keys and one of lists, or several columns of numbers."""
    try:
        from pyarrow import parquet  # noqa: PLC0415 (needed for such a file only)
    except ModuleNotFoundError as error:
        raise ExportError(f"{path} needs the package pyarrow; install it: pip install pyarrow.") from error
    read = parquet.read_table(path)
    columns = {name: read.column(name).to_pylist() for name in read.column_names}
    keys = next((name for name in ("item_id", "item", "key", "id") if name in columns), None)
    names = columns.pop(keys) if keys is not None else None
    if len(columns) == 1:
        rows = next(iter(columns.values()))
        table = np.array(rows, np.float32)
    else:
        table = np.array(list(columns.values()), np.float32).T
    return (None if names is None else [str(name) for name in names]), table


def _bias(path: Path) -> Table:
    try:
        return np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, np.float32, ndmin=1)
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(f"{path} cannot be read as a bias: {error}; give one number for each item.") from error


def _histories(
    items: int, ids: dict[str, int] | None, interactions: Interactions | None, longest: int | None
) -> list[list[int]]:
    """Those of the interactions that have known items, and drawn ones."""
    known = ids if ids is not None else {str(item): item for item in range(items)}
    found = [] if interactions is None else list(interactions.histories.values())
    histories = [[known[key] for key in each if key in known] for each in found[:_HISTORIES]]
    if interactions is not None and not any(histories):
        raise ExportError("No interaction names an item of the vectors; give the data that they belong to.")
    random = np.random.default_rng(1)
    lengths = random.integers(1, longest or _LONGEST, _HISTORIES, endpoint=True)
    histories += [random.integers(0, items, length).tolist() for length in lengths]
    return [each[-(longest or len(each)) :] for each in histories if each][:_HISTORIES]
