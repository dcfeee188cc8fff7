"""A checkpoint: the trained numbers in the forms that trainers write, fitted to a network key by key."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from recommender.export.errors import ExportError

State: TypeAlias = Mapping[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights")
"""Keys under which trainers keep a `state_dict`, next to the optimizer's and others."""
_SAFETENSORS = ".safetensors"
_A_CLASS = "Unsupported global"
"""Torch's error for a pickle that names a class or a function."""
_ALIKE = 5
"""Keys that a refusal names."""


def restore(network: nn.Module, checkpoint: Path) -> str | None:
    """Load a checkpoint's numbers into a network; returns the prefix that was taken off its keys, None for none.

    Takes a `state_dict` of `torch.save`, also inside a training checkpoint (Lightning, RecBole), and safetensors. A
    prefix that all keys have (`module.`, `model.`) is taken off. Raises ExportError unless every key then fits.
    """
    state = _safetensors(checkpoint) if checkpoint.suffix == _SAFETENSORS else _pickled(checkpoint)
    own = network.state_dict()
    prefix = _prefix(own, state)
    if prefix:
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    wrong = {
        "missing in the checkpoint": sorted(own.keys() - state.keys()),
        "unknown to the network": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if own[key].shape != state[key].shape
        ],
    }
    told = "; ".join(f"{what}: {_some(keys)}" for what, keys in wrong.items() if keys)
    if told:
        raise ExportError(
            f"The checkpoint {checkpoint} does not fit {type(network).__name__}: {told}. "
            "Build the network with the sizes that it was trained with."
        )
    network.load_state_dict(dict(state))
    return prefix or None


def _prefix(own: State, state: State) -> str:
    """The prefix of the network's keys in the checkpoint that fits most of them."""
    fitting = len(own.keys() & state.keys())
    best = ""
    first = next(iter(own), None)
    for key in state:
        if first is not None and key.endswith(f".{first}"):
            prefix = key.removesuffix(first)
            count = sum(f"{prefix}{each}" in state for each in own)
            if count > fitting:
                fitting, best = count, prefix
    return best


def _safetensors(checkpoint: Path) -> State:
    try:
        from safetensors import SafetensorError  # noqa: PLC0415 (needed for such a file only)
        from safetensors.torch import load_file  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ExportError(
            f"The checkpoint {checkpoint} needs the package safetensors; install it: pip install safetensors."
        ) from error
    return _read(checkpoint, load_file, (OSError, SafetensorError))


def _pickled(checkpoint: Path) -> State:
    def load(path: Path) -> object:
        return torch.load(path, map_location="cpu", weights_only=True)

    return _read(checkpoint, load, (OSError, RuntimeError, ValueError, EOFError))


def _read(checkpoint: Path, load: Callable[[Path], object], errors: tuple[type[Exception], ...]) -> State:
    """The tensors in a file, by key. Raises ExportError if it cannot be read or holds no `state_dict`."""
    try:
        found = load(checkpoint)
    except FileNotFoundError as error:
        raise ExportError(f"The checkpoint {checkpoint} does not exist; give a file written by torch.save.") from error
    except pickle.UnpicklingError as error:
        if _A_CLASS not in str(error):
            raise _unreadable(checkpoint, error) from error
        raise ExportError(
            f"The checkpoint {checkpoint} holds Python objects besides tensors, and reading those would run code of "
            "its author. Write tensors only, where it was trained: "
            "torch.save(torch.load(path, weights_only=False)['state_dict'], new_path), or "
            "torch.save(network.state_dict(), new_path)."
        ) from error
    except errors as error:
        raise _unreadable(checkpoint, error) from error
    state = _unwrapped(found)
    if state is None:
        raise ExportError(
            f"The checkpoint {checkpoint} holds no state_dict; write it by torch.save(network.state_dict(), path)."
        )
    return state


def _unreadable(checkpoint: Path, error: Exception) -> ExportError:
    return ExportError(
        f"The checkpoint {checkpoint} cannot be read as tensors: {str(error).splitlines()[0]} "
        "Give a file written by torch.save(network.state_dict(), path)."
    )


def _unwrapped(found: object) -> State | None:
    if not isinstance(found, dict):
        return None
    if found and all(isinstance(value, Tensor) for value in found.values()):
        return found
    inner = (_unwrapped(found[key]) for key in _WRAPPERS if key in found)
    return next((state for state in inner if state is not None), None)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_ALIKE]) + (f" and {len(keys) - _ALIKE} more" if len(keys) > _ALIKE else "")
