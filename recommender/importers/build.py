"""The import: a hand-over becomes a network, which is exported and held to what the library ranks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from recommender.export.errors import ExportError
from recommender.export.exporter import export_model
from recommender.export.options import ExportOptions
from recommender.importers.elsewhere import hand_over
from recommender.importers.forms import network_of
from recommender.importers.handover import HANDOVER, Handover, read_handover
from recommender.importers.interactions import Interactions
from recommender.importers.networks.hstu import REQUEST_TIME
from recommender.importers.options import ImportOptions
from recommender.importers.vectors import read_vectors
from recommender.models.card import Origin

LEAST_HISTORIES = 200
_HISTORIES = 256
_COMPARED = 10
_MOST_POPULAR = 100
_NO_DIGEST = "no digest: the file does not hold its training data; give --interactions"

Progress = Callable[[str, float], None]


def import_model(
    options: ImportOptions,
    progress: Progress = lambda _stage, _share: None,
    tell: Callable[[str], None] = lambda _sentence: None,
) -> Path:
    """Write a trained model as a model file with its card and return the file's path.

    `progress` and `tell` are those of `export_model`. The library itself ranks at least 200 histories, and the file is
    written only if it ranks them alike. Raises ExportError otherwise, and for a model or data that do not fit.
    """
    interactions = None if options.interactions is None else Interactions.read(options.interactions)
    with tempfile.TemporaryDirectory(prefix="recommender-import-") as name:
        work = Path(name)
        progress("reading the model", 0.0)
        told, network = _trained(options, interactions, work)
        if interactions is not None and any(each.times for each in told.rankings):
            interactions.need_times()
        told = told.model_copy(update={"popular": tuple(_popular(told, interactions))})
        told = _without(told, options.never_recommend)
        compared = [each for each in told.rankings if each.items]
        if len(compared) < LEAST_HISTORIES:
            raise ExportError(
                f"{told.library} has ranked {len(compared)} histories; at least {LEAST_HISTORIES} are compared. "
                "Write the hand-over again by the script of --script."
            )
        export = ExportOptions(
            network=f"{told.library}:{told.network}",
            num_recommendations=options.num_recommendations,
            max_k=options.max_k,
            output=options.output,
            vocabulary=_lines(work / "items.txt", told.item_keys),
            fallback=_lines(work / "fallback.txt", [_name(told, item) for item in told.popular]),
            never_recommend=options.never_recommend,
            parity=_parity(work / "parity.jsonl", told),
            user_vocabulary=_lines(work / "users.txt", _user_keys(told)),
            name=options.name,
            version=options.version,
            exported_by="recommender import",
        )
        digest = told.data_sha256 if interactions is None else interactions.sha256
        origin = Origin(
            library=told.library,
            library_version=told.library_version,
            network=told.network,
            parameters=dict(told.parameters),
            data_sha256=digest,
            no_digest=None if digest is not None else _NO_DIGEST,
        )
        path = export_model(export, progress, tell, network=network, origin=origin)
    for sentence in getattr(network, "assumed", ()):
        tell(sentence)
    if digest is None:
        tell(f"The card has {_NO_DIGEST}.")
    seen = ", the items of the history left out on both sides" if told.without_seen else ""
    tell(
        f"Ranking: that of {told.library} {told.library_version} for {len(compared)} histories, the best "
        f"{_COMPARED} of each{seen}."
    )
    return path


def _trained(options: ImportOptions, interactions: Interactions | None, work: Path) -> tuple[Handover, nn.Module]:
    """The trained model, and the network with its numbers."""
    if options.library == "vectors":
        return read_vectors(options, interactions)
    folder = options.source
    if not (folder / HANDOVER).is_file():
        if options.python is None:
            raise ExportError(
                f"{options.source} is read by {options.library} itself: give the interpreter of its environment as "
                "--python, or run the script of --script there and give the folder that it wrote."
            )
        folder = work / "handover"
        asked = []
        if interactions is not None:
            interactions.write_histories(work / "histories.jsonl", _HISTORIES)
            asked += ["--histories", str(work / "histories.jsonl")]
        for option, path in (("--item-keys", options.item_keys), ("--user-keys", options.user_keys)):
            asked += [] if path is None else [option, str(path)]
        hand_over(options.library, options.python, options.source, folder, asked, timeout=options.timeout)
    told, arrays = read_handover(folder)
    if told.library != options.library:
        raise ExportError(f"{folder} was written by {told.library}; import it as {told.library}.")
    return told, network_of(told, arrays, folder)


def _without(told: Handover, never_recommend: Path | None) -> Handover:
    """The same without the items of the never-recommend list in rankings and popular items."""
    if never_recommend is None:
        return told
    try:
        barred = set(never_recommend.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{never_recommend} cannot be read: {error}; give a text file.") from error

    def kept(items: Sequence[int]) -> tuple[int, ...]:
        return tuple(item for item in items if _name(told, item) not in barred)

    rankings = tuple(each.model_copy(update={"items": kept(each.items)}) for each in told.rankings)
    return told.model_copy(update={"rankings": rankings, "popular": kept(told.popular)})


def _popular(told: Handover, interactions: Interactions | None) -> Sequence[int]:
    """Items for the fallback list, by the given interactions, else by the library's own data."""
    if interactions is None:
        return told.popular[:_MOST_POPULAR]
    numbers = {_name(told, item): item for item in range(told.items)}
    return [numbers[key] for key in interactions.popular() if key in numbers][:_MOST_POPULAR]


def _name(told: Handover, item: int) -> str:
    return str(item) if told.item_keys is None else told.item_keys[item]


def _user_keys(told: Handover) -> Sequence[str]:
    """Keys of users: without any, the numbers that the library gives them, which are one less than ours."""
    if told.users is None:
        return ()
    return told.user_keys if told.user_keys is not None else [str(user) for user in range(told.users)]


def _lines(path: Path, lines: Sequence[str] | None) -> Path | None:
    if not lines:
        return None
    for line in lines:
        if "\n" in line or not line:
            raise ExportError(f"The key {line!r} is empty or has a line break; no request could name it so.")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _parity(path: Path, told: Handover) -> Path:
    lines = []
    for each in told.rankings:
        if each.items:
            line: dict[str, object] = {"history": each.history, "recommendations": each.items[:_COMPARED]}
            if each.user is not None:
                line["user"] = each.user + 1
            if each.times:
                *times, now = (1000 * time for time in each.times)
                line |= {"history_times": times, "features": {REQUEST_TIME: now}}
            if told.without_seen:
                line["excluded"] = sorted(set(each.history))
            lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path
