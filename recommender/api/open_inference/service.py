"""The RPCs of the Open Inference Protocol as plain functions: a message in, its reply out. Knows no transport."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from recommender.api.messages import check_few_fields, decoded
from recommender.api.open_inference.descriptions import configuration, index, metadata, server_metadata, statistics
from recommender.api.open_inference.features import declared_features
from recommender.api.open_inference.filters import filter_of
from recommender.api.open_inference.names import about_inputs
from recommender.api.open_inference.rankings import Reply, check_size, reply_to_one, wanted_outputs
from recommender.api.open_inference.rows import RowReader, Rows, model_named
from recommender.api.open_inference.tensors import refused
from recommender.api.queries import Asked, Limits
from recommender.api.replies import failure
from recommender.errors import InvalidRequestError, RecommenderError, UnavailableError, UnknownModelError
from recommender.models.version import Version
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.routing.answering import Answer, Answering
from recommender.routing.router import Router
from recommender.security.access import charge
from recommender.threads import Turns

_MOST_FIELDS: Final = 1000
"""Tensors, outputs and parameters of a request; there are names for some twenty."""
_SHORT_BYTES: Final = 1 << 16
"""Bytes of a message that parses in 0.2 ms; a longer one gets a separate turn."""
_FEW_ITEMS: Final = 1 << 12
"""Items that are written at once: some 0.1 ms."""


@dataclass(slots=True)
class _Wanted:
    """A ModelInferRequest that was read, but for its rows."""

    id: str
    names: Sequence[str]
    """Of the outputs."""
    rows: Rows
    raw: bool
    """Whether outputs are raw, as the inputs were."""


class OpenInferenceService:
    """Answers the protocol's messages with the versions of a router."""

    def __init__(self, router: Router, answering: Answering, turns: Turns, limits: Limits) -> None:
        self._router = router
        self._answering = answering
        self._turns = turns
        self._limits = limits
        self._reader = RowReader(limits)
        self._metadata = server_metadata()

    async def infer(self, message: bytes, deadline: float = math.inf, request_id: str = "") -> oip.ModelInferResponse:
        """Rank for each row of a ModelInferRequest; `deadline` is on the batcher's clock.

        Raises InvalidRequestError if the request or a row of it is at fault, QuotaError if its token has more rows than
        it may, what `Router.route` raises for the model that it names, and what the first row that fails fails with.
        """
        # One coroutine fewer on the fast path.
        request = _decoded(message) if len(message) <= _SHORT_BYTES else await self._parsed(message)
        return await self._infer(request, deadline, request_id)

    async def stream_infer(self, message: bytes, default_timeout: float) -> oip.ModelStreamInferResponse:
        """Answer one message of a stream; any error is its reply, in the words of `failure`."""
        request = oip.ModelInferRequest()
        try:
            request = await self._parsed(message)
            with _charging_refusals():
                timeout = _timeout_of(request)
            deadline = time.monotonic() + (default_timeout if timeout == math.inf else timeout)
            answer = await self._infer(request, deadline, request.id)
        except Exception as error:  # noqa: BLE001 (one message's fate never ends the stream)
            return oip.ModelStreamInferResponse(
                error_message=failure(error).message, infer_response=oip.ModelInferResponse(id=request.id)
            )
        return oip.ModelStreamInferResponse(infer_response=answer)

    def server_metadata(self) -> oip.ServerMetadataResponse:
        """Describe the server."""
        return self._metadata

    def ready(self, request: oip.ModelReadyRequest) -> bool:
        """Whether a model answers calls."""
        try:
            self._router.route(model_named(request.name, request.version))
        except (UnknownModelError, UnavailableError):
            return False
        return True

    def metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        """Describe the tensors of a model. Raises what `Router.route` raises."""
        version = self._router.route(model_named(request.name, request.version))
        name = version.model.name
        serving = [each.model.version for each in self._router.serving() if each.model.name == name]
        return metadata(version, [version.model.version] if request.version else serving)

    def configuration(self, request: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        """Describe a model as Triton's configuration would. Raises what `Router.route` raises."""
        version = self._router.route(model_named(request.name, request.version))
        return configuration(version, self._limits.batch_requests)

    def statistics(self, request: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
        """Count what one version has done, or each of all. Raises what `Router.route` raises."""
        versions: Sequence[Version] = self._router.serving()
        if request.name:
            versions = [self._router.route(model_named(request.name, request.version))]
        return oip.ModelStatisticsResponse(model_stats=map(statistics, versions))

    def index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        """List the models that there are."""
        return index(self._router.lanes, only_ready=request.ready)

    async def _parsed(self, message: bytes) -> oip.ModelInferRequest:
        if len(message) <= _SHORT_BYTES:
            return _decoded(message)
        with _charging_refusals():
            check_few_fields(oip.ModelInferRequest, message, _MOST_FIELDS)
        return await self._turns.once(lambda: _decoded(message))

    async def _infer(self, request: oip.ModelInferRequest, deadline: float, request_id: str) -> oip.ModelInferResponse:
        plain = self._reader.plain(request, request_id)
        if plain is not None:
            # The fast path of most calls, in half the time.
            asked, outputs = plain
            charge(1)
            try:
                answer = await self._answering.answer(asked, deadline)
            except InvalidRequestError as error:
                raise about_inputs(error, None) from None
            return reply_to_one(answer, outputs, request.id)
        with _charging_refusals():
            timeout = _timeout_of(request)
            wanted = await self._read(request, request_id)
        charge(wanted.rows.count)
        return await self._answer(wanted, min(deadline, time.monotonic() + timeout))

    async def _read(self, request: oip.ModelInferRequest, request_id: str) -> _Wanted:
        model = model_named(request.model_name, request.model_version)
        version = self._router.route(model)
        names = wanted_outputs(request, version)
        declared = declared_features((version, *self._router.serving()))
        tensors = self._reader.open(request, declared)
        await self._turns.each(tensors.fillings, lambda fill: fill())
        rows = self._reader.rows(tensors.named, model, request_id, declared, filter_of(request))
        check_size(rows.count, rows.longest(version.limit), names, version)
        return _Wanted(request.id, names, rows, raw=bool(request.raw_input_contents))

    async def _answer(self, wanted: _Wanted, deadline: float) -> oip.ModelInferResponse:
        rows = wanted.rows
        answers: list[Answer] = []
        for part in rows.parts():
            asked: list[Asked] = []
            await self._turns.each(map(rows.read, part), asked.append)
            answers += await self._answer_rows(asked, part.start if rows.count > 1 else None, deadline)
        width = max([len(answer.ranking.item_ids) for answer in answers])
        reply = Reply(wanted.names, len(answers), width, raw=wanted.raw)
        if len(answers) * width <= _FEW_ITEMS:
            reply.add(answers)
        else:
            together = max(_FEW_ITEMS // max(width, 1), 1)
            parts = (answers[start : start + together] for start in range(0, len(answers), together))
            await self._turns.each(parts, reply.add)
        return reply.finish(wanted.id)

    async def _answer_rows(self, asked: Sequence[Asked], first: int | None, deadline: float) -> list[Answer]:
        """Answer rows that follow the `first`; None for the only one.

        Raises the error of a row that is at fault itself, else that of the first that failed.
        """
        if len(asked) == 1:
            try:
                return [await self._answering.answer(asked[0], deadline)]
            except InvalidRequestError as error:
                raise about_inputs(error, first) from None
        outcomes = await self._answering.answer_many(asked, deadline)
        failures = [(row, each) for row, each in enumerate(outcomes, first or 0) if isinstance(each, RecommenderError)]
        for row, failed in failures:
            if isinstance(failed, InvalidRequestError):
                raise about_inputs(failed, row)
        if failures:
            raise failures[0][1]
        return [each for each in outcomes if isinstance(each, Answer)]


def _decoded(message: bytes) -> oip.ModelInferRequest:
    try:
        return decoded(oip.ModelInferRequest, message)
    except InvalidRequestError:
        charge(1)
        raise


@contextmanager
def _charging_refusals() -> Iterator[None]:
    """Charge one request for what is refused before its rows are known."""
    try:
        yield
    except RecommenderError:
        charge(1)
        raise


def _timeout_of(request: oip.ModelInferRequest) -> float:
    """The time-out that a request sets, in seconds; infinite if it sets none. Raises InvalidRequestError."""
    if "timeout" not in request.parameters:
        return math.inf
    parameter = request.parameters["timeout"]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise refused("timeout", "it is a whole number of microseconds")
    microseconds: int = getattr(parameter, kind)
    return microseconds / 1e6 if microseconds > 0 else math.inf
