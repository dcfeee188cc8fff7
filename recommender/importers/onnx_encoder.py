"""Encoders that others wrote as ONNX: a history to a user's vector. They run as they are, in front of our head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, ValueInfoProto, helper
from torch import Tensor, nn

from recommender.export.errors import ExportError
from recommender.export.obstacles import obstacle
from recommender.importers.adapt.foreign import REAL, WHOLE, fixed_size, load_model, rank_of, shown
from recommender.importers.adapt.splice import of_our_opset
from recommender.importers.networks.mean import Encoded

_PREFIX = "encoder."


class OnnxEncoder(nn.Module):
    """An encoder of ONNX Runtime, called as a torch module: the export checks with it and takes its graph over.

    Raises ExportError unless the file has an input of ids [batch, history], one of lengths [batch], and one output of
    vectors [batch, d], with batch and history free.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._model = of_our_opset(path, load_model(path))
        self._history, self._length, self._output = _ports(path, self._model.graph)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # it logs the errors that it raises
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise ExportError(f"ONNX Runtime cannot load {path}: {obstacle(error)}.") from error

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """Vectors float32 [batch, d] for histories int64 [batch, history] and their lengths int64 [batch]."""
        fed = {
            port.name: values.numpy().astype(helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type))
            for port, values in ((self._history, user_history), (self._length, history_length))
        }
        (vectors,) = self._session.run([self._output.name], fed)
        return torch.from_numpy(np.asarray(vectors, np.float32))

    def onnx_model(self) -> onnx.ModelProto:
        """The graph with the names and types that an export has: inputs int64, vectors `user_vectors` float32."""
        theirs = onnx.compose.add_prefix(self._model, _PREFIX).graph
        ports = {"user_history": self._history, "history_length": self._length}
        turned = [
            helper.make_node("Cast", [name], [_PREFIX + port.name], to=port.type.tensor_type.elem_type)
            for name, port in ports.items()
        ]
        yielded = helper.make_node("Cast", [_PREFIX + self._output.name], ["user_vectors"], to=TensorProto.FLOAT)
        graph = helper.make_graph(
            [*turned, *theirs.node, yielded],
            "encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ports],
            [helper.make_tensor_value_info("user_vectors", TensorProto.FLOAT, None)],
            theirs.initializer,
        )
        return helper.make_model(graph, opset_imports=self._model.opset_import)


class EncodedByOnnx(Encoded):
    """Users' vectors from such an encoder, items' from a table; see `Network`."""

    def __init__(self, encoder: OnnxEncoder, vectors: Tensor, bias: Tensor | None, longest_history: int | None) -> None:
        super().__init__(encoder, vectors, bias, longest_history)
        self.onnx_model = encoder.onnx_model


def _ports(path: Path, graph: onnx.GraphProto) -> tuple[ValueInfoProto, ValueInfoProto, ValueInfoProto]:
    """The inputs of ids and of lengths, and the output of vectors."""
    given = {each.name for each in graph.initializer}
    inputs, outputs = [each for each in graph.input if each.name not in given], list(graph.output)
    whole = [each for each in inputs if each.type.tensor_type.elem_type in WHOLE]
    ids, lengths = ([each for each in whole if rank_of(each) == rank] for rank in (2, 1))
    vectors = [each for each in outputs if each.type.tensor_type.elem_type in REAL and rank_of(each) == 2]  # noqa: PLR2004
    if len(inputs) != 2 or not ids or not lengths or len(outputs) != 1 or not vectors:  # noqa: PLR2004
        listed = ", ".join(f"{each.name!r} {shown(each)}" for each in (*inputs, *outputs))
        raise ExportError(
            f"{path} has {listed}; an encoder takes ids [batch, history] and lengths [batch], both int32 or int64, and "
            "yields vectors [batch, d]. A file that yields scores is taken by `recommender models adapt`."
        )
    for port, place, what in ((ids[0], 0, "batch"), (ids[0], 1, "history"), (lengths[0], 0, "batch")):
        size = fixed_size(port, place)
        if size is not None:
            raise ExportError(f"{path} takes a {what} of {size} only, by {port.name!r}; export it with both free.")
    return ids[0], lengths[0], vectors[0]
