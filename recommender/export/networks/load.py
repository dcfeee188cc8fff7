"""Load: from the options' word for a network to the torch module, with the checkpoint's numbers in it."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from recommender.export.errors import ExportError
from recommender.export.networks.gru4rec import Gru4Rec
from recommender.export.networks.network import ReferenceNetwork
from recommender.export.networks.sasrec import SasRec
from recommender.export.options import ExportOptions

_BUILT_IN = ("reference", "sasrec", "gru4rec")


def load_network(options: ExportOptions) -> nn.Module:
    """The network that the options name, in evaluation mode, on the CPU.

    Raises ExportError where the word names nothing, the factory fails, or the checkpoint does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = _build(options)
    if options.checkpoint is not None:
        _restore(network, options.checkpoint)
    return network.eval().cpu()


def _build(options: ExportOptions) -> nn.Module:
    match options.network:
        case "reference":
            return ReferenceNetwork(options.items, options.dim, options.seed)
        case "sasrec":
            return SasRec(options.items, options.dim, options.layers, options.heads, options.longest_history)
        case "gru4rec":
            return Gru4Rec(options.items, options.dim, options.layers, options.longest_history)
        case word:
            return _from_factory(word)


def _from_factory(word: str) -> nn.Module:
    module_name, colon, factory_name = word.partition(":")
    if not (colon and module_name and factory_name):
        raise ExportError(
            f"network is {word!r}; give {', '.join(map(repr, _BUILT_IN))}, or 'module:factory' "
            "where factory() returns a torch.nn.Module."
        )
    # As `python -m` does: a module beside which one stands is found.
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ExportError(
            f"network is {word!r}, but module {module_name!r} cannot be imported: {error}. "
            "Give a module that Python finds from here, and see that it imports by itself."
        ) from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ExportError(
            f"network is {word!r}, but module {module_name!r} has no callable {factory_name!r}; "
            "name a function or class in it that takes no arguments and returns a torch.nn.Module."
        )
    try:
        network = factory()
    except Exception as error:
        raise ExportError(
            f"{word} failed: {type(error).__name__}: {error}. It is called without arguments and must return a "
            "torch.nn.Module."
        ) from error
    if not isinstance(network, nn.Module):
        raise ExportError(f"{word} returned {type(network).__name__}; it must return a torch.nn.Module.")
    return network


def _restore(network: nn.Module, checkpoint: Path) -> None:
    """Load the checkpoint's state into the network; every key must fit."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ExportError(f"The checkpoint {checkpoint} does not exist; give a file written by torch.save.") from error
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ExportError(
            f"The checkpoint {checkpoint} cannot be read as tensors: {str(error).splitlines()[0]} "
            "Give a file written by torch.save(network.state_dict(), path)."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ExportError(
            f"The checkpoint {checkpoint} holds no state_dict; write it by torch.save(network.state_dict(), path)."
        )
    own = network.state_dict()
    wrong = {
        "missing in the checkpoint": sorted(own.keys() - state.keys()),
        "unknown to the network": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if own[key].shape != state[key].shape
        ],
    }
    told = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in wrong.items() if keys)
    if told:
        raise ExportError(
            f"The checkpoint {checkpoint} does not fit {type(network).__name__}: {told}. "
            "Build the network with the sizes that it was trained with."
        )
    network.load_state_dict(state)
