"""`vectors --encoder`: a network that makes a user's vector of a history, with any ids and width."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from torch import Tensor

from recommender.export.errors import ExportError
from recommender.export.options import Side
from recommender.importers.adapt.filling import Filling
from recommender.importers.networks.filled import Filled
from recommender.importers.networks.mean import Encoded
from recommender.importers.networks.numbers import Numbers
from recommender.importers.networks.sizes import Sizes
from recommender.importers.onnx_encoder import EncodedByOnnx, OnnxEncoder
from recommender.importers.options import ImportOptions
from recommender.importers.program import read_program


def read_encoder(path: Path, options: ImportOptions, vectors: Tensor, bias: Tensor | None) -> Encoded:
    """Users' vectors from the encoder in this file, items' from `vectors` [items, d] and `bias` [items].

    Raises ExportError if the file is no encoder, or takes histories otherwise than the options say.
    """

    def laid_out(width: int | None, takes_lengths: bool) -> Filling | None:  # noqa: FBT001 (two facts of a file)
        return _filling(path, options, len(vectors), width, takes_lengths=takes_lengths)

    if path.suffix == ".onnx":
        encoder = OnnxEncoder(path, laid_out)
        return EncodedByOnnx(
            encoder, vectors, bias, _longest(encoder.filling, options), _assumed(path, encoder.filling)
        )
    program = read_program(path)
    filling = laid_out(program.width, program.takes_lengths)
    module = program.module
    if filling is not None:
        module = Filled(module, filling, takes_lengths=program.takes_lengths)
    return Encoded(module, vectors, bias, _longest(filling, options), _assumed(path, filling))


def handed_over(path: Path, numbers: Numbers, sizes: Sizes) -> Encoded:
    """The network of a library's script: users' vectors from its program, items' from its arrays.

    Raises ExportError if the program is no encoder, or takes histories otherwise than the sizes say.
    """
    program = read_program(path)
    width, told = sizes.whole("width"), sizes.word("padding_side")
    side = next((each for each in get_args(Side) if each == told), None)
    mask_id = sizes.whole("mask_id") if "mask_id" in sizes else None
    if program.width not in (None, width) or side is None:
        raise ExportError(
            f"{path} takes {program.width} ids; the hand-over says {width}, padded on the {told}. Write it again by "
            "the script of --script."
        )
    filling = Filling(width, side, padding_id=0, first_item=sizes.whole("first_item"), mask_id=mask_id)
    vectors = numbers.take("weights", None, None)
    bias = numbers.take("bias", len(vectors)) if "bias" in numbers else None
    module = Filled(program.module, filling, takes_lengths=program.takes_lengths)
    assumed = f"Histories: the program of the hand-over reads {filling.assumed()}"
    return Encoded(module, vectors, bias, filling.longest, (assumed,))


def _longest(filling: Filling | None, options: ImportOptions) -> int | None:
    return options.longest_history if filling is None or filling.longest is None else filling.longest


def _assumed(path: Path, filling: Filling | None) -> tuple[str, ...]:
    return () if filling is None else (f"Histories: {path} reads {filling.assumed()}",)


def _filling(
    path: Path, options: ImportOptions, items: int, width: int | None, *, takes_lengths: bool
) -> Filling | None:
    """How a history is laid out for it; None if by our own numbers, padded on the right."""
    declared = (options.padding_id, options.padding_side, options.first_item, options.mask_id)
    if all(each is None for each in declared):
        if width is None and takes_lengths:
            return None
        what = "takes no lengths" if width is None else f"takes {width} ids, no more and no fewer"
        raise ExportError(
            f"{path} {what}; say how a history is filled up, by --padding-side and, if they are not 0 and 1, "
            "--padding-id and --first-item."
        )
    padding_id, side, mask_id = options.padding_id or 0, options.padding_side or "right", options.mask_id
    first, masked = options.first_item, int(mask_id is not None)
    first = int(padding_id == 0) if first is None else first
    longest = options.longest_history
    if width is not None and longest not in (None, width - masked):
        raise ExportError(f"{path} takes {width} ids, so its longest history is {width - masked}, not {longest}.")
    if width is None and side == "left":
        if longest is None:
            raise ExportError(f"{path} takes any width, padded on the left; say the width by --longest-history.")
        width = longest + masked
    # With lengths no id has to mean padding, so an item's will do.
    for what, special in (("padding", None if takes_lengths else padding_id), ("mask", mask_id)):
        if special is not None and first <= special < first + items:
            raise ExportError(
                f"The {what} {special} is the id of item {special - first} for {path}; --first-item says which is 0's."
            )
    return Filling(width, side, padding_id, first, mask_id)
