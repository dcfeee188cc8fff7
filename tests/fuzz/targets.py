"""Fuzz targets: each takes any bytes, and must end with an answer or with an error raised on purpose.

A target raises AssertionError if a rule is broken, or lets an unexpected error pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from google.protobuf.message import Message
from google.rpc import code_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.api.messages import decoded
from recommender.api.open_inference.names import INPUTS
from recommender.api.open_inference.service import OpenInferenceService
from recommender.api.queries import Limits
from recommender.api.service import RecommenderService
from recommender.api.status import refusal, status_of
from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.domain import Model, Query, Ranking
from recommender.engine.onnx_file import read_onnx_file
from recommender.errors import ModelError, SettingsError, StartError
from recommender.models.artifact import open_artifact
from recommender.models.fallback import read_fallback
from recommender.models.version import Version
from recommender.models.vocabulary import Vocabulary, write_vocabulary
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.router import Router
from recommender.security.access import Access, read_grants
from recommender.settings.settings import Settings

Target: TypeAlias = Callable[[bytes], object]

ITEMS, MAX_K, LIMIT = 50, 20, 5
KEYS = [f"key-{item}" for item in range(ITEMS)]
FALLBACK = (3, 1, 4, 15, 9, 26)
LONGEST_HISTORY = 16


class _Engine:
    """Ranks the lowest ids that a query allows, and holds queries to what an engine may count on."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        return [self._rank(query) for query in queries]

    def stage(self, _: Sequence[Query]) -> None:
        """Nothing is ready before its turn."""

    def terminate(self) -> None:
        raise AssertionError("no run of this engine can hang")

    @staticmethod
    def _rank(query: Query) -> Ranking:
        assert 1 <= len(query.history) <= LONGEST_HISTORY
        assert all(0 <= item < ITEMS for item in (*query.history, *query.excluded, *(query.candidates or ())))
        assert 1 <= query.k <= MAX_K
        assert list(query.excluded) == sorted(set(query.excluded))
        if query.candidates is not None:
            assert query.candidates
            assert list(query.candidates) == sorted(set(query.candidates))
            assert not query.excluded
        allowed = query.candidates if query.candidates is not None else range(ITEMS)
        ids = [item for item in allowed if item not in query.excluded][: query.k]
        return Ranking(ids, [float(ITEMS - item) for item in ids])


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _folder() -> Path:
    # In memory where there is such a place: a target runs thousands of times a second.
    memory = Path("/dev/shm")  # noqa: S108 (a new folder is made in it)
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))


@cache
def _service(*, keyed: bool) -> RecommenderService:
    async def build() -> RecommenderService:
        batcher = Batcher(_Engine(), max_batch_size=8, max_backlog=4096, engine_timeout=60.0, cost=Cost(1e-6))
        vocabulary = None
        if keyed:
            path = _folder() / "keys"
            write_vocabulary(KEYS, path)
            vocabulary = Vocabulary.open(path, ITEMS)
        served = Version(
            model=Model("fuzzed", "1", ITEMS, LIMIT, MAX_K, LONGEST_HISTORY, 0.0),
            batcher=batcher,
            abilities=frozenset({"k", "excluded", "candidates", "scores"}) if keyed else frozenset({"k"}),
            sha256="0" * 64,
            embedding_size=8,
            execution_provider="CPUExecutionProvider",
            loaded_at=datetime(2026, 1, 1, tzinfo=UTC),
            limit=LIMIT,
            plain_history=min(64, LONGEST_HISTORY),
            plain_items=ITEMS,
            label="fuzzed@1",
            close_engine=lambda: True,
            measured=(),
            vocabulary=vocabulary,
            fallback=FALLBACK if keyed else (),
        )
        limits = Limits(history=64, excluded=64, candidates=64, batch_requests=32, reject_unknown=not keyed)
        router = Router(retire_grace=1.0)
        router.adopt(router.add_lane("fuzzed", frozenset()), served)
        return RecommenderService(router, limits=limits)

    return _loop().run_until_complete(build())


def _worded(error: Exception) -> None:
    """Check an operator's message: a sentence, and not the file again."""
    assert 0 < len(str(error)) < 10_000


def _told(code: int, message: str) -> None:
    """An outcome that a caller can act on: never our fault, never a stack trace."""
    assert code in (code_pb2.INVALID_ARGUMENT, code_pb2.NOT_FOUND), (code, message)
    assert message
    assert "Traceback" not in message
    assert len(message) < 16_384, "a status of many kilobytes does not travel in HTTP/2 headers"


def _refused(error: Exception) -> None:
    status = status_of(error)
    if status.code == code_pb2.INTERNAL:
        raise error
    _told(status.code, status.message)
    refused = refusal(error, "id")
    assert sum(len(key) + len(value) for key, value in refused.metadata) < 16_384


def _replied(reply: api.RecommendResponse) -> None:
    assert len(reply.item_ids) <= MAX_K
    assert len(set(reply.item_ids)) == len(reply.item_ids)
    assert all(0 <= item < ITEMS for item in reply.item_ids)
    if reply.source == api.SOURCE_FALLBACK:
        assert not reply.scores


def _ask(request: Message, service: RecommenderService) -> None:
    """Check that every message gets its reply or a refusal, and so does each request in it."""
    try:
        if isinstance(request, api.RecommendRequest):
            _replied(_loop().run_until_complete(service.recommend(request)))
        elif isinstance(request, api.BatchRecommendRequest):
            response = _loop().run_until_complete(service.batch_recommend(request.SerializeToString()))
            assert len(response.results) == len(request.requests)
            for result in response.results:
                _outcome(result)
        elif isinstance(request, api.StreamRecommendRequest):
            reply = _loop().run_until_complete(service.stream_recommend(request))
            assert reply.correlation_id == request.correlation_id
            _outcome(reply)
        elif isinstance(request, api.GetModelRequest):
            service.get_model(request)
    except Exception as error:  # noqa: BLE001 (checked there)
        _refused(error)


def _outcome(result: api.RecommendResult | api.StreamRecommendResponse) -> None:
    if result.WhichOneof("outcome") == "response":
        _replied(result.response)
    else:
        _told(result.error.code, result.error.message)


_MESSAGES = (api.RecommendRequest, api.BatchRecommendRequest, api.StreamRecommendRequest, api.GetModelRequest)


def message(data: bytes) -> None:
    """The bytes of a call: the first byte picks the method and the model, the others are its message."""
    if not data:
        return
    try:
        request = decoded(_MESSAGES[data[0] % len(_MESSAGES)], data[1:])
    except Exception as error:  # noqa: BLE001 (checked there)
        _refused(error)
        return
    _ask(request, _service(keyed=data[0] >= 128))


_ids = st.lists(st.one_of(st.integers(0, ITEMS - 1), st.integers(-(2**31), 2**31 - 1)), max_size=80)
_keys = st.lists(st.one_of(st.sampled_from(KEYS), st.text(max_size=300)), max_size=80)
_requests = st.builds(
    api.RecommendRequest,
    item_ids=st.one_of(_ids, st.just([1])),
    item_keys=st.one_of(st.just([]), _keys),
    excluded_item_ids=st.one_of(st.just([]), _ids, st.just(list(range(ITEMS)))),
    excluded_item_keys=st.one_of(st.just([]), _keys),
    candidate_item_ids=st.one_of(st.just([]), _ids),
    candidate_item_keys=st.one_of(st.just([]), _keys),
    exclude_history=st.booleans(),
    limit=st.one_of(st.integers(-1, MAX_K + 1), st.integers(-(2**31), 2**31 - 1)),
    min_score=st.one_of(st.none(), st.floats(width=32)),
    model=st.one_of(st.just(""), st.sampled_from(["fuzzed", "fuzzed@1", "other"]), st.text(max_size=300)),
    routing_key=st.text(max_size=300),
    user_key=st.one_of(st.just(""), st.text(max_size=300)),
    user_id=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    history_type_ids=st.one_of(st.just([]), _ids),
    history_type_keys=st.one_of(st.just([]), _keys),
    history_times=st.one_of(st.just([]), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=80)),
)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(requests=st.lists(_requests, min_size=1, max_size=4), keyed=st.booleans())
def _drawn(requests: list[api.RecommendRequest], keyed: bool) -> None:  # noqa: FBT001 (hypothesis names its arguments)
    service = _service(keyed=keyed)
    for request in requests:
        _ask(request, service)
    _ask(api.BatchRecommendRequest(requests=requests), service)


def request(data: bytes) -> None:
    """Requests that are well formed, of values as odd as they may be; the bytes are hypothesis's choices."""
    _drawn.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]  # hypothesis puts it there


def card(data: bytes) -> None:
    """The card next to the model file."""
    model = _folder() / "5_model.onnx"
    if not model.exists():
        model.write_bytes(b"model")
    (_folder() / "5_model.card.json").write_bytes(data)
    try:
        open_artifact(model)
    except ModelError as error:
        _worded(error)


_card_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(
            ["5_model.onnx", "../5_model.onnx", "/dev/null", ".", "model", "vocabulary", "fallback", "0" * 64]
        ),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def _altered_card(data: st.DataObject) -> None:
    altered: dict[str, object] = json.loads(Path("weights/5_model.card.json").read_bytes())
    files = [dict(file) for file in altered["files"]]  # type: ignore[attr-defined]  # it is a list
    altered["files"] = files
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([altered, files[0]]))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(_card_values)
    card(json.dumps(altered).encode())


def altered_card(data: bytes) -> None:
    """A good card with up to three values changed; the bytes are hypothesis's choices."""
    _altered_card.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]  # hypothesis puts it there


def model(data: bytes) -> None:
    """A model file, as far as it is read by hand before ONNX Runtime sees it."""
    path = _folder() / "anatomy.onnx"
    path.write_bytes(data)
    try:
        anatomy = read_onnx_file(path)
        anatomy.check_tables()
    except ModelError as error:
        _worded(error)


def fallback(data: bytes) -> None:
    """A fallback list."""
    path = _folder() / "fallback.txt"
    path.write_bytes(data)
    try:
        found = read_fallback(path, ITEMS)
    except ModelError as error:
        _worded(error)
        return
    assert found
    assert all(0 <= item < ITEMS for item in found)


def tokens(data: bytes) -> None:
    """The tokens file."""
    try:
        grants = read_grants([data])
    except StartError as error:
        _worded(error)
        return
    access = Access()
    access.replace(grants)
    for name in grants:
        assert access.usage[name].calls == 0


def environment(data: bytes) -> None:
    """A `.env` file, from the file to the settings."""
    for key in tuple(os.environ):
        if key.upper().startswith("RECOMMENDER_"):
            del os.environ[key]
    (_folder() / ".env").write_bytes(data)
    try:
        with contextlib.chdir(_folder()):
            found = Settings.load()
    except SettingsError as error:
        _worded(error)
        return
    assert Settings.model_validate(found.model_dump()) == found
    assert all("\n" not in line for line in found.environment())


_OTHERS: Sequence[tuple[type[Message], Callable[[OpenInferenceService], Callable[[Any], object]]]] = (
    (oip.ModelReadyRequest, lambda service: service.ready),
    (oip.ModelMetadataRequest, lambda service: service.metadata),
    (oip.ModelConfigRequest, lambda service: service.configuration),
    (oip.ModelStatisticsRequest, lambda service: service.statistics),
    (oip.RepositoryIndexRequest, lambda service: service.index),
)
"""The other messages that the bytes of a call can be, with their methods."""


def infer(data: bytes) -> None:
    """The bytes of a call of the Open Inference Protocol: the first byte picks the method and the model."""
    if not data:
        return
    service = _service(keyed=data[0] >= 128).open_inference
    try:
        if data[0] % 2:
            _check_tensors(_loop().run_until_complete(service.infer(data[1:])))
        elif data[0] % 4:
            reply = _loop().run_until_complete(service.stream_infer(data[1:], 5.0))
            assert reply.error_message or reply.infer_response.outputs
            assert "Traceback" not in reply.error_message
        else:
            kind, answer = _OTHERS[data[0] // 4 % len(_OTHERS)]
            answer(service)(decoded(kind, data[1:]))
    except Exception as error:  # noqa: BLE001 (checked there)
        _refused(error)


def _check_tensors(reply: oip.ModelInferResponse) -> None:
    raw = reply.raw_output_contents
    assert not raw or len(raw) == len(reply.outputs)
    for place, output in enumerate(reply.outputs):
        size = output.shape[0] * output.shape[1]
        if output.name == "recommendations":
            ids = struct.unpack(f"<{size}q", raw[place]) if raw else output.contents.int64_contents
            assert len(ids) == size
            assert all(-1 <= item < ITEMS for item in ids)
        elif output.name == "scores":
            assert len(raw[place]) == 4 * size if raw else len(output.contents.fp32_contents) == size


_DIMENSIONS = st.lists(st.one_of(st.integers(0, 4), st.integers(-(2**63), 2**63 - 1)), max_size=3)
_NUMBERS = st.lists(st.one_of(st.integers(0, ITEMS - 1), st.integers(-(2**63), 2**63 - 1)), max_size=12)
_CONTENTS = st.one_of(
    st.binary(max_size=40),
    _NUMBERS.map(lambda numbers: struct.pack(f"<{len(numbers)}q", *numbers)),
    st.lists(st.one_of(st.sampled_from(KEYS).map(str.encode), st.binary(max_size=5)), max_size=4).map(
        lambda keys: b"".join(len(key).to_bytes(4, "little") + key for key in keys)
    ),
)
_TYPED = st.builds(
    oip.InferTensorContents,
    int64_contents=_NUMBERS,
    int_contents=st.one_of(st.just([]), st.lists(st.integers(-1, ITEMS), max_size=4)),
    bytes_contents=st.one_of(st.just([]), st.lists(st.sampled_from(KEYS).map(str.encode), max_size=4)),
)


@st.composite
def _tensor(draw: st.DrawFn) -> tuple[oip.ModelInferRequest.InferInputTensor, bytes]:
    """A tensor and its raw contents, of which most have the size of the shape."""
    names = [*INPUTS, "other"]
    datatype = draw(st.sampled_from(["INT64", "INT64", "INT32", "BYTES", "FP32"]))
    contents, shape = draw(_CONTENTS), draw(_DIMENSIONS)
    if draw(st.integers(0, 3)):
        size = len(contents) // (4 if datatype == "INT32" else 8)
        shape = draw(st.sampled_from([[size], [1, size], [size, 1], [size // 2, 2]]))
    tensor = oip.ModelInferRequest.InferInputTensor(name=draw(st.sampled_from(names)), datatype=datatype, shape=shape)
    if not draw(st.integers(0, 5)):
        tensor.contents.CopyFrom(draw(_TYPED))
    return tensor, contents


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    tensors=st.lists(_tensor(), max_size=4),
    names=st.lists(st.sampled_from(["recommendations", "scores", "item_keys", "other"]), max_size=3),
    timeout=st.one_of(st.none(), st.integers(-1, 2**63 - 1)),
    first=st.integers(0, 255),
)
def _drawn_tensors(
    tensors: list[tuple[oip.ModelInferRequest.InferInputTensor, bytes]],
    names: list[str],
    timeout: int | None,
    first: int,
) -> None:
    request = oip.ModelInferRequest(inputs=[tensor for tensor, _ in tensors])
    if first % 8:
        request.raw_input_contents.extend(contents for _, contents in tensors)
    for name in names:
        request.outputs.add(name=name)
    if timeout is not None and timeout > 10**9:  # a short one would end as late as it is
        request.parameters["timeout"].int64_param = timeout
    infer(bytes([first | 1]) + request.SerializeToString())


def tensors(data: bytes) -> None:
    """Tensors that are nearly right; the bytes are hypothesis's choices."""
    _drawn_tensors.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]  # hypothesis puts it there


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "message": message,
        "request": request,
        "infer": infer,
        "tensors": tensors,
        "card": card,
        "altered_card": altered_card,
        "model": model,
        "fallback": fallback,
        "tokens": tokens,
        "environment": environment,
    }
)
