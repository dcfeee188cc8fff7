"""Writes models without their large tables, for `bench.questions.elsewhere`: a folder that is small to carry.

`python -m bench.questions.skeletons FOLDER --sizes 1000000x64,100000x64`. `--older FILE` adds a coarse head of an
export before codes stood one row an item.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from bench.questions.topk import ours, plain
from recommender.export.head.codes import CODES, Codes
from recommender.export.table import TABLE, Layout, pack

_LARGE = 1 << 20


def stripped(path: Path, folder: Path, name: str, size: str) -> dict[str, object]:
    """Write a model without its large tables; returns which file holds which kind of table."""
    model = onnx.load(path)
    files = {}
    for tensor in model.graph.initializer:
        length = len(tensor.raw_data)
        if length < _LARGE:
            continue
        kind = {TABLE: "table", CODES: "codes", "table": "across"}.get(tensor.name, "older")
        file = f"{kind}-{size}.bin"
        files[file] = kind
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", file), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    (folder / f"{name}-{size}.onnx").write_bytes(model.SerializeToString())
    return {"model": f"{name}-{size}.onnx", "files": files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default="1000000x64,100000x64")
    parser.add_argument("--older", action="append", default=[], metavar="SIZE=FILE")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    older = dict(each.split("=", 1) for each in given.older)
    listed: dict[str, dict[str, object]] = {}
    for size in given.sizes.split(","):
        items, dim = map(int, size.split("x"))
        embeddings = np.random.default_rng(0).random((items, dim), dtype=np.float32)
        layout = Layout(items, dim)
        codes = Codes.of(pack(embeddings, None, layout), layout)
        with tempfile.TemporaryDirectory() as place:
            made = {
                "head": ours(embeddings, Path(place)),
                "8 bits": ours(embeddings, Path(place), coarse=True),
                "plain": plain(embeddings, Path(place), select=True),
            }
            if size in older:
                made["older 8 bits"] = Path(older[size])
            listed[size] = {
                name: stripped(path, given.folder, name.replace(" ", "-"), size) for name, path in made.items()
            }
        np.savez(
            given.folder / f"codes-{size}.npz",
            middle=codes.middle,
            step=codes.step,
            table=layout.rows,
            older=layout.rows,
            codes=codes.codes.shape[0] * codes.codes.shape[1],
        )
    (given.folder / "models.json").write_text(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main()
