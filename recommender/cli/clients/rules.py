"""`--filter`, `--parameter`, `--boost` and `--max-per`: words become the rules of a request."""

from __future__ import annotations

import math
from collections.abc import Sequence

import typer

from recommender.cli.clients.features import as_they_look, split
from recommender.client import Boost, MaxPer, Options


def rules_of(wanted: str, parameters: Sequence[str], boosts: Sequence[str], bounds: Sequence[str]) -> Options:
    """The fields of a request for these options; an option that is not given sets no field.

    Raises typer.BadParameter if a word cannot be read.
    """
    given: Options = {"filter": wanted} if wanted else {}
    if parameters:
        try:
            given["filter_parameters"] = as_they_look(split(parameters, "a parameter such as brand=acme"))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--parameter") from None
    if boosts:
        given["boosts"] = [_boost(word) for word in boosts]
    if bounds:
        given["max_per"] = [_bound(word) for word in bounds]
    return given


def _boost(word: str) -> Boost:
    """A factor such as `FILTER=1.2`, or an addend, which has a sign: `FILTER=-0.5`."""
    condition, _, effect = word.rpartition("=")
    try:
        number = float(effect)
    except ValueError:
        number = math.nan
    if not condition.strip() or condition.rstrip()[-1] in "=<>!" or not math.isfinite(number):
        raise typer.BadParameter(
            f"{word!r} has no effect: end it in a factor, as item.fresh=1.2, or in an addend, as item.fresh=+0.5",
            param_hint="--boost",
        )
    if effect.strip()[0] in "+-":
        return Boost(filter=condition, addend=number)
    return Boost(filter=condition, factor=number)


def _bound(word: str) -> MaxPer:
    attribute, _, most = word.rpartition("=")
    if not attribute or not (most.isascii() and most.isdigit()) or int(most) >= 1 << 31:
        raise typer.BadParameter(f"{word!r} is not a bound such as brand=3", param_hint="--max-per")
    return MaxPer(attribute=attribute, n=int(most))
