"""Encoders that others wrote as ONNX: a history to a user's vector. They run as they are, in front of our head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, ValueInfoProto, helper
from torch import Tensor, nn

from recommender.export.errors import ExportError
from recommender.export.nodes import Nodes
from recommender.export.obstacles import obstacle
from recommender.importers.adapt.branches import refuse_branches
from recommender.importers.adapt.filling import Filling
from recommender.importers.adapt.foreign import REAL, WHOLE, fixed_size, load_model, rank_of, shown
from recommender.importers.adapt.splice import of_our_opset
from recommender.importers.networks.filled import filled
from recommender.importers.networks.mean import Encoded

_PREFIX = "encoder."


class OnnxEncoder(nn.Module):
    """An encoder of ONNX Runtime, called as a torch module: the export checks with it and takes its graph over.

    Raises ExportError unless the file has an input of ids [batch, history], one of lengths [batch], and one output of
    vectors [batch, d], with a free batch, and does not branch on data. `laid_out` gets the number of ids that it takes,
    None if that is free, and whether it takes lengths; it says how a history is laid out, or raises ExportError.
    """

    def __init__(self, path: Path, laid_out: Callable[[int | None, bool], Filling | None]) -> None:
        super().__init__()
        self._path = path
        self._model = of_our_opset(path, load_model(path))
        self._history, self._length, self._output = _ports(path, self._model.graph)
        refuse_branches(path, self._model.graph, [each.name for each in self._inputs()])
        self.filling = laid_out(fixed_size(self._history, 1), self._length is not None)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # it logs the errors that it raises
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ExportError(f"ONNX Runtime cannot load {path}: {obstacle(error)}.") from error

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """Vectors float32 [batch, d] for histories int64 [batch, history] and their lengths int64 [batch]."""
        asked = user_history, history_length
        if self.filling is not None:
            asked = filled(self.filling, user_history, history_length)
        fed = {
            port.name: values.numpy().astype(helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type))
            for port, values in zip(self._inputs(), asked, strict=False)
        }
        (vectors,) = self._session.run([self._output.name], fed)
        return torch.from_numpy(np.asarray(vectors, np.float32))

    def _inputs(self) -> list[ValueInfoProto]:
        return [self._history] if self._length is None else [self._history, self._length]

    def onnx_model(self) -> onnx.ModelProto:
        """The graph with the names and types that an export has: inputs int64, vectors `user_vectors` float32."""
        ours = "user_history", "history_length"
        g = Nodes(part="filling")
        asked = ours if self.filling is None else self.filling.add(g, *ours)
        theirs = onnx.compose.add_prefix(self._model, _PREFIX).graph
        turned = [
            helper.make_node("Cast", [name], [_PREFIX + port.name], to=port.type.tensor_type.elem_type)
            for port, name in zip(self._inputs(), asked, strict=False)
        ]
        yielded = helper.make_node("Cast", [_PREFIX + self._output.name], ["user_vectors"], to=TensorProto.FLOAT)
        graph = helper.make_graph(
            [*g.nodes, *turned, *theirs.node, yielded],
            "encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ours],
            [helper.make_tensor_value_info("user_vectors", TensorProto.FLOAT, None)],
            [*g.initializers, *theirs.initializer],
        )
        return helper.make_model(graph, opset_imports=self._model.opset_import)


class EncodedByOnnx(Encoded):
    """Users' vectors from such an encoder, items' from a table; see `Network`."""

    def __init__(
        self,
        encoder: OnnxEncoder,
        vectors: Tensor,
        bias: Tensor | None,
        longest_history: int | None,
        assumed: tuple[str, ...] = (),
    ) -> None:
        super().__init__(encoder, vectors, bias, longest_history, assumed)
        self.onnx_model = encoder.onnx_model


def _ports(path: Path, graph: onnx.GraphProto) -> tuple[ValueInfoProto, ValueInfoProto | None, ValueInfoProto]:
    """The inputs of ids and, if it has one, of lengths, and the output of vectors."""
    given = {each.name for each in graph.initializer}
    inputs, outputs = [each for each in graph.input if each.name not in given], list(graph.output)
    whole = [each for each in inputs if each.type.tensor_type.elem_type in WHOLE]
    ids, lengths = ([each for each in whole if rank_of(each) == rank] for rank in (2, 1))
    vectors = [each for each in outputs if each.type.tensor_type.elem_type in REAL and rank_of(each) == 2]  # noqa: PLR2004
    if len(ids) != 1 or len(inputs) != 1 + len(lengths) or len(lengths) > 1 or len(outputs) != 1 or not vectors:
        listed = ", ".join(f"{each.name!r} {shown(each)}" for each in (*inputs, *outputs))
        raise ExportError(
            f"{path} has {listed}; an encoder takes ids [batch, history] and lengths [batch], both int32 or int64, and "
            "yields vectors [batch, d]. A file that yields scores is taken by `recommender models adapt`."
        )
    for port in (*ids, *lengths):
        size = fixed_size(port, 0)
        if size is not None:
            raise ExportError(f"{path} takes a batch of {size} only, by {port.name!r}; export it with a free batch.")
    return ids[0], next(iter(lengths), None), vectors[0]
