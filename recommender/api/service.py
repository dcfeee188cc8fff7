"""The RPCs as plain async functions: read a message, have it answered, write the reply. Knows no transport."""

from __future__ import annotations

import math
from collections.abc import Iterator

from recommender.api.batch_call import BatchCall, ReplySize
from recommender.api.open_inference.service import OpenInferenceService
from recommender.api.queries import Asked, Limits, Reader
from recommender.api.replies import description, failure, has_many_keys, write, write_in_parts
from recommender.errors import InvalidRequestError, RecommenderError
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.answering import Answer, Answering
from recommender.routing.router import Router
from recommender.security.access import charge
from recommender.threads import Turns


class RecommenderService:
    """Answers the messages of every RPC with the versions of a router."""

    def __init__(self, router: Router, *, limits: Limits) -> None:
        self.turns = Turns()
        """Turns for slow work while calls are answered."""
        self._router = router
        self._reader = Reader(limits)
        self._answering = Answering(router, self.turns)
        self.open_inference = OpenInferenceService(router, self._answering, self.turns, limits)
        """The same versions, asked by the Open Inference Protocol."""

    async def recommend(
        self, request: api.RecommendRequest, deadline: float = math.inf, request_id: str = ""
    ) -> api.RecommendResponse:
        """Answer one request; `deadline` is on the batcher's clock.

        Raises InvalidRequestError if the request is at fault, what `Router.route` raises for the model that it
        names, and what `Batcher.submit` raises.
        """
        asked = self._reader.read(request, request_id)
        answer = await self._answering.answer(asked, deadline)
        reply = api.RecommendResponse()
        if has_many_keys(answer):
            await self.turns.through(write_in_parts(asked, answer, reply))
        else:
            write(asked, answer, reply)
        return reply

    async def batch_recommend(self, message: bytes, deadline: float = math.inf) -> api.BatchRecommendResponse:
        """Answer every request of a `BatchRecommendRequest`, with one outcome each.

        Raises InvalidRequestError if the message is malformed, has too many requests, or if its reply could be too
        large to send; QuotaError if its token allows fewer requests.
        """
        call = self._reader.divided(message)
        charge(len(call))
        await self._check_reply(call)
        response = api.BatchRecommendResponse()
        for part in call.parts():
            await self._answer_part(part, deadline, response)
        return response

    async def _check_reply(self, call: BatchCall) -> None:
        """Refuse a call whose reply could be too large to send, before anything is ranked."""
        size = ReplySize(self._router.live)
        if size.may_exceed(len(call)):
            await self.turns.each(call, size.add)
            size.check()

    async def _answer_part(self, requests: BatchCall, deadline: float, response: api.BatchRecommendResponse) -> None:
        """Answer some requests of a call, and add their results to its response."""
        read: list[Asked] = []
        refused: dict[int, RecommenderError] = {}

        def reading() -> Iterator[None]:
            for place, request in enumerate(requests):
                try:
                    if isinstance(request, InvalidRequestError):
                        raise request
                    read.append(self._reader.read(request))
                except RecommenderError as error:
                    refused[place] = error
                yield

        await self.turns.through(reading())
        outcomes = await self._answering.answer_many(read, deadline)
        read.reverse()
        outcomes.reverse()
        add_result = response.results.add

        def written() -> Iterator[None]:
            for place in range(len(requests)):
                result = add_result()
                if place in refused:
                    result.error.CopyFrom(failure(refused[place]))
                    yield
                    continue
                asked, outcome = read.pop(), outcomes.pop()  # to free thousands of ids takes long: each in its turn
                if not isinstance(outcome, Answer):
                    result.error.CopyFrom(failure(outcome))
                elif has_many_keys(outcome):
                    yield from write_in_parts(asked, outcome, result.response)
                else:
                    write(asked, outcome, result.response)
                yield

        await self.turns.through(written())

    async def stream_recommend(
        self, message: api.StreamRecommendRequest, deadline: float = math.inf
    ) -> api.StreamRecommendResponse:
        """Answer one message of a stream; any error is its outcome, in the words of `status_of`."""
        try:
            charge(1)
            asked = self._reader.read(message.request, frame=message)
            answer = await self._answering.answer(asked, deadline)
            response = api.StreamRecommendResponse()
            if has_many_keys(answer):
                await self.turns.through(write_in_parts(asked, answer, response.response))
            else:
                write(asked, answer, response.response)
        except Exception as error:  # noqa: BLE001 (one message's fate never ends the stream)
            response = api.StreamRecommendResponse(error=failure(error))
        response.correlation_id = message.correlation_id
        return response

    def get_model(self, request: api.GetModelRequest) -> api.GetModelResponse:
        """Describe the model of this name. Raises InvalidRequestError, and what `Router.route` raises."""
        version = self._router.route(self._reader.model_of(request))
        return api.GetModelResponse(model=description(version, self._router))

    def list_models(self, _: api.ListModelsRequest) -> api.ListModelsResponse:
        """Describe every model that is served."""
        return api.ListModelsResponse(models=[description(version, self._router) for version in self._router.serving()])
