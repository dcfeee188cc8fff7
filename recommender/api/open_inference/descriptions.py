"""Describe models as the protocol does: metadata, configuration, statistics, index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version as release_of
from types import MappingProxyType
from typing import Final, NamedTuple

from recommender.api.open_inference.names import HISTORY, TIMES, TYPES
from recommender.api.open_inference.rankings import DATATYPES, KEYS, RECOMMENDATIONS, SCORES, outputs_of
from recommender.batching.statistics import Outcome
from recommender.domain import FeatureKind
from recommender.models.version import Version
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.routing.router import Lane

EXTENSIONS: Final = ("model_configuration", "model_repository", "statistics")
"""Triton's names of the extensions that are spoken."""
_PLATFORM: Final = "onnx_onnxv1"
"""The specification's name of a model for ONNX Runtime."""
_TRITON_PLATFORM: Final = "onnxruntime_onnx"
_BACKEND: Final = "onnxruntime"
_READY, _UNAVAILABLE = "READY", "UNAVAILABLE"
_ANY: Final = -1


class _Tensor(NamedTuple):
    """A tensor's type, and its shape without the rows."""

    datatype: str
    shape: tuple[int, ...]


_INPUTS: Final[Mapping[str, _Tensor]] = MappingProxyType(
    {
        HISTORY: _Tensor("INT64", (_ANY,)),
        "history_length": _Tensor("INT64", (1,)),
        TYPES: _Tensor("INT64", (_ANY,)),
        TIMES: _Tensor("INT64", (_ANY,)),
        "k": _Tensor("INT64", (1,)),
        "excluded": _Tensor("INT64", (2,)),
        "candidates": _Tensor("INT64", (_ANY,)),
        "candidates_length": _Tensor("INT64", (1,)),
        "user": _Tensor("INT64", (1,)),
    }
)
_ALWAYS: Final = frozenset({HISTORY, "history_length"})
"""Inputs that requests may have for any model."""
_OF_FEATURES: Final[Mapping[FeatureKind, str]] = MappingProxyType(
    {"int64": "INT64", "float": "FP32", "bool": "BOOL", "string": "BYTES"}
)
"""The datatype of each kind of feature."""
_OUTPUTS: Final[Mapping[str, _Tensor]] = MappingProxyType(
    {name: _Tensor(DATATYPES[name], (_ANY,)) for name in (RECOMMENDATIONS, SCORES, KEYS)}
)
_TYPES: Final[Mapping[str, oip.DataType]] = MappingProxyType(
    {"INT64": oip.TYPE_INT64, "FP32": oip.TYPE_FP32, "BOOL": oip.TYPE_BOOL, "BYTES": oip.TYPE_STRING}
)


def server_metadata() -> oip.ServerMetadataResponse:
    """Describe the server."""
    return oip.ServerMetadataResponse(name="recommender", version=release_of("recommender"), extensions=EXTENSIONS)


def metadata(version: Version, versions: Sequence[str]) -> oip.ModelMetadataResponse:
    """Describe the tensors of a version; `versions` are those of its model that are served."""

    def told(tensors: Mapping[str, _Tensor]) -> list[oip.ModelMetadataResponse.TensorMetadata]:
        return [
            oip.ModelMetadataResponse.TensorMetadata(name=name, datatype=each.datatype, shape=(_ANY, *each.shape))
            for name, each in tensors.items()
        ]

    return oip.ModelMetadataResponse(
        name=version.model.name,
        versions=versions,
        platform=_PLATFORM,
        inputs=told(_inputs_of(version)),
        outputs=told(_outputs_of(version)),
    )


def configuration(version: Version, most_rows: int) -> oip.ModelConfigResponse:
    """Describe a version as Triton's configuration would; a request may have `most_rows` rows."""
    inputs = [
        oip.ModelInput(
            name=name, data_type=_TYPES[each.datatype], dims=each.shape, optional=_is_optional(name, version)
        )
        for name, each in _inputs_of(version).items()
    ]
    outputs = [
        oip.ModelOutput(name=name, data_type=_TYPES[each.datatype], dims=each.shape)
        for name, each in _outputs_of(version).items()
    ]
    return oip.ModelConfigResponse(
        config=oip.ModelConfig(
            name=version.model.name,
            platform=_TRITON_PLATFORM,
            backend=_BACKEND,
            max_batch_size=most_rows,
            input=inputs,
            output=outputs,
            dynamic_batching=oip.ModelDynamicBatching(),
        )
    )


def statistics(version: Version) -> oip.ModelStatistics:
    """Count what a version has done since it was loaded, for callers of every protocol."""
    seen = version.batcher.statistics()
    runs = sum(seen.batches.values())
    failed = seen.ended - seen.answered - seen.outcomes[Outcome.CANCELLED]
    return oip.ModelStatistics(
        name=version.model.name,
        version=version.model.version,
        inference_count=seen.answered,
        execution_count=runs,
        inference_stats=oip.InferStatistics(
            success=_duration(seen.answered, seen.wait_seconds + seen.run_seconds),
            fail=_duration(failed, 0.0),
            queue=_duration(sum(seen.wait_times), seen.wait_seconds),
            compute_infer=_duration(runs, seen.run_seconds),
        ),
        batch_stats=[
            oip.InferBatchStatistics(batch_size=rows, compute_infer=_duration(count, 0.0))
            for rows, count in sorted(seen.batches.items())
        ],
    )


def index(lanes: Sequence[Lane], *, only_ready: bool) -> oip.RepositoryIndexResponse:
    """List the versions that serve, and the models of which none does."""
    listed = oip.RepositoryIndexResponse()
    for lane in lanes:
        if lane.version is not None:
            model = lane.version.model
            listed.models.add(name=model.name, version=model.version, state=_READY)
        elif not only_ready:
            name = min(lane.names, key=len, default=lane.reference)
            listed.models.add(name=name, state=_UNAVAILABLE, reason="no version of it is loaded")
    return listed


def _is_optional(name: str, version: Version) -> bool:
    """Whether a version answers requests without an input."""
    model = version.model
    if name == HISTORY:
        return model.users is not None
    if name == TYPES:
        return model.history_types is None or model.history_types.default is not None
    if name == TIMES:
        return model.history_times is None or model.history_times.default is not None
    return all(feature.default is not None for feature in model.features if feature.name == name)


def _inputs_of(version: Version) -> dict[str, _Tensor]:
    taken = {name: each for name, each in _INPUTS.items() if name in _ALWAYS or name in version.abilities}
    return taken | {
        feature.name: _Tensor(_OF_FEATURES[feature.kind], (feature.width or 1,)) for feature in version.model.features
    }


def _outputs_of(version: Version) -> dict[str, _Tensor]:
    return {name: _OUTPUTS[name] for name in outputs_of(version)}


def _duration(count: int, seconds: float) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=count, ns=int(seconds * 1e9))
