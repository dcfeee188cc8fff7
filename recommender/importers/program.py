"""Programs of torch.export: read only if the archive holds plain numbers, since torch would run pickled objects."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from recommender.export.errors import ExportError
from recommender.export.obstacles import failure

_OBJECTS = ("custom_obj_", "opaque_obj_")
"""Entries of an archive that torch reads as Python objects."""


_BRANCHES = ("cond", "while_loop")
"""Operators of torch that ask values what to compute."""


@dataclass(frozen=True, slots=True)
class Program:
    """An encoder; `width` is the number of ids that it takes, None if that is free."""

    module: nn.Module
    width: int | None
    takes_lengths: bool


def read_program(path: Path) -> Program:
    """The encoder in a `.pt2`.

    Raises ExportError if it is malformed, holds Python objects, branches on data, or takes one size of batch only.
    """
    if path.suffix != ".pt2":
        raise ExportError(
            f"{path} is neither .pt2 nor .onnx: write the encoder by torch.export.save or torch.onnx.export."
        )
    try:
        held = _objects(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} cannot be read as a program of torch.export: {error}.") from error
    if held is not None:
        raise ExportError(
            f"{path} holds Python objects besides numbers ({held}), and reading those would run code of its "
            "author. Write it again by torch.export.save of torch 2.9 or newer, from a module that holds tensors only."
        )
    try:
        program = torch.export.load(path)
        module = program.module()
    except Exception as error:
        raise ExportError(f"{path} cannot be read as a program of torch.export: {failure(error)}.") from error
    _refuse_branches(path, program)
    return Program(module, *_sizes(path, program))


def _refuse_branches(path: Path, program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name in _BRANCHES:
            raise ExportError(
                f"{path} branches on the values of its inputs, by torch.{name} at {node.name!r}: the answer to one "
                "history would depend on others of its batch. Use torch.where and masks instead, and export it again."
            )


def _sizes(path: Path, program: ExportedProgram) -> tuple[int | None, bool]:
    """The number of ids that it takes, None if that is free, and whether it takes their lengths, too."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values.get(name) for name in program.graph_signature.user_inputs if isinstance(name, str)]
    ids = inputs[0] if inputs else None
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(inputs) > 2:  # noqa: PLR2004
        raise ExportError(
            f"{path} has {len(inputs)} inputs; an encoder takes ids int64 [batch, history] and, if it needs them, "
            "lengths int64 [batch]."
        )
    batch, width = ids.shape
    if type(batch) is int:
        raise ExportError(f"{path} takes a batch of {batch} only; export it with a dynamic batch.")
    return width if type(width) is int else None, len(inputs) > 1


def _objects(path: Path) -> str | None:
    """The first entry of the archive that torch would unpickle; None without any."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("archive_format") for name in names):
            return "an older format"
        for name in names:
            base = name.rpartition("/")[2]
            if base.startswith(_OBJECTS):
                return name
            if base.endswith("_config.json"):
                told: dict[str, dict[str, object]] = json.loads(archive.read(name))["config"]
                pickled = next((key for key, value in told.items() if value.get("use_pickle") is not False), None)
                if pickled is not None:
                    return pickled
            if base.endswith((".pt", ".pkl")) and not _plain(archive.read(name)):
                return name
    return None


def _plain(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return False
    return True
