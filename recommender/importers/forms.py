"""The networks that a hand-over can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from recommender.export.errors import ExportError
from recommender.importers.encoders import handed_over
from recommender.importers.handover import PROGRAM, Handover
from recommender.importers.networks.factors import Als, Bpr
from recommender.importers.networks.hstu import hstu
from recommender.importers.networks.numbers import Array, Numbers
from recommender.importers.networks.recbole import RecBoleBert4Rec, RecBoleGru4Rec, RecBoleSasRec
from recommender.importers.networks.rectools import RecToolsBert4Rec, RecToolsSasRec
from recommender.importers.networks.similarity import dense, sparse
from recommender.importers.networks.sizes import Sizes

_TRANSFORMERS: Mapping[str, Callable[[Numbers, Sizes], nn.Module]] = {
    "rectools.sasrec": RecToolsSasRec,
    "rectools.bert4rec": RecToolsBert4Rec,
    "rectools.hstu": hstu,
    "recbole.sasrec": RecBoleSasRec,
    "recbole.bert4rec": RecBoleBert4Rec,
    "recbole.gru4rec": RecBoleGru4Rec,
}


def network_of(told: Handover, arrays: Mapping[str, Array], folder: Path) -> nn.Module:
    """The network with the numbers of the hand-over in this folder.

    Raises ExportError if there is no such network, or the arrays are not exactly its own.
    """
    owner = f"{told.library}'s {told.network}"
    numbers, sizes = Numbers(arrays, owner), Sizes(told.sizes, owner)
    network: nn.Module
    if told.form == "program":
        network = handed_over(folder / PROGRAM, numbers, sizes)
        numbers.end()
        return network  # a program has one mode, that of its export
    if told.form in _TRANSFORMERS:
        network = _TRANSFORMERS[told.form](numbers, sizes)
    elif told.form == "implicit.als":
        network = Als(numbers, sizes, [each.history for each in told.rankings])
    elif told.form == "implicit.bpr":
        network = Bpr(numbers)
    elif told.form == "similarity.sparse":
        network = sparse(numbers)
    elif told.form == "similarity.dense":
        network = dense(numbers)
    else:
        raise ExportError(f"{told.form!r} is no network of this version; write the hand-over again by its --script.")
    numbers.end()
    return network.eval()
