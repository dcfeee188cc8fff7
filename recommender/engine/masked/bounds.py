"""Bounds of blocks: a model's output for rows that are ranked outside of its graph.

A model may take `bounded` int64 [rows], the rows of a batch that it need not rank; by default none. For each of them it
gives `bounds` float32 [rows, blocks]: no item of that block scores more. Items after the last full block have no bound.
A run that does not go by blocks gives no rows. The metadata `recommender.block` is the number of items in a block.
"""

from __future__ import annotations

import onnxruntime

BOUNDED = "bounded"
BOUNDS = "bounds"
BLOCK = "block"
"""Its key in the metadata, after `recommender.`."""


def block_of(session: onnxruntime.InferenceSession) -> int | None:
    """How many items a block has; None if the model gives no bounds."""
    if not any(port.name == BOUNDED for port in session.get_overridable_initializers()):
        return None
    size = session.get_modelmeta().custom_metadata_map.get(f"recommender.{BLOCK}", "")
    return int(size) if size.isdecimal() and int(size) % 8 == 0 and int(size) else None
