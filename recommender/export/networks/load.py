"""Load: from the options' word for a network to the torch module, with the checkpoint's numbers in it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from recommender.export.errors import ExportError
from recommender.export.networks.checkpoint import restore
from recommender.export.networks.gru4rec import Gru4Rec
from recommender.export.networks.network import ReferenceNetwork
from recommender.export.networks.sasrec import SasRec
from recommender.export.networks.tisasrec import TiSasRec
from recommender.export.networks.two_tower import TwoTower
from recommender.export.obstacles import failure
from recommender.export.options import BUILT_IN, ExportOptions


def load_network(options: ExportOptions) -> nn.Module:
    """The network that the options name, in evaluation mode, on the CPU.

    Raises ExportError where the word names nothing, the factory fails, or the checkpoint does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = _build(options)
    if options.checkpoint is not None:
        restore(network, options.checkpoint)
    return _for_evaluation(network)


def _for_evaluation(network: nn.Module) -> nn.Module:
    try:
        return network.cpu().eval()
    except NotImplementedError:  # a program of `torch.export` is for evaluation already
        return network
    except Exception as error:
        raise ExportError(f"{type(network).__name__}.eval() failed: {failure(error)}.") from error


def _build(options: ExportOptions) -> nn.Module:
    sizes = options.sizes
    match options.network:
        case "reference":
            return ReferenceNetwork(sizes.items, sizes.dim, options.seed)
        case "sasrec":
            return SasRec(sizes.items, sizes.dim, sizes.layers, sizes.heads, sizes.longest_history)
        case "tisasrec":
            return TiSasRec(sizes.items, sizes.dim, sizes.layers, sizes.heads, sizes.longest_history)
        case "two-tower":
            return TwoTower(sizes.items, sizes.dim)
        case "gru4rec":
            return Gru4Rec(sizes.items, sizes.dim, sizes.layers, sizes.longest_history)
        case word:
            return _from_factory(word)


def _from_factory(word: str) -> nn.Module:
    module_name, colon, factory_name = word.partition(":")
    if not (colon and module_name and factory_name):
        raise ExportError(
            f"network is {word!r}; give {', '.join(map(repr, BUILT_IN))}, or 'module:factory' "
            "where factory() returns a torch.nn.Module."
        )
    # As `python -m` does: a module next to the one named is found.
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ExportError(
            f"network is {word!r}, but module {module_name!r} cannot be imported: {failure(error)}. "
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
            f"{word} failed: {failure(error)}. It is called without arguments and must return a torch.nn.Module."
        ) from error
    if isinstance(network, torch.export.ExportedProgram):
        network = network.module()
    network = getattr(network, "_orig_mod", network)  # what `torch.compile` was given
    if isinstance(network, torch.jit.ScriptModule):
        raise ExportError(
            f"{word} returned a scripted module, which cannot be traced again; return the Python module that it was "
            "made from, or a program of torch.export."
        )
    if not isinstance(network, nn.Module):
        raise ExportError(f"{word} returned {type(network).__name__}; it must return a torch.nn.Module.")
    return network
