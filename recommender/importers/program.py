"""Programs of torch.export: read only if the archive holds plain numbers, since torch would run pickled objects."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn

from recommender.export.errors import ExportError
from recommender.export.obstacles import failure

_OBJECTS = ("custom_obj_", "opaque_obj_")
"""Entries of an archive that torch reads as Python objects."""


def read_program(path: Path) -> nn.Module:
    """The module of a `.pt2`; raises ExportError if it is none, or holds Python objects."""
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
            f"{path} holds Python objects beside numbers ({held}), and reading those would run code of whoever wrote "
            "it. Write it again by torch.export.save of torch 2.9 or newer, from a module that holds tensors only."
        )
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise ExportError(f"{path} cannot be read as a program of torch.export: {failure(error)}.") from error


def _objects(path: Path) -> str | None:
    """The first entry of the archive that torch would unpickle; None if there is none."""
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
