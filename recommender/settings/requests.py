"""Settings of the API: what one request may ask for."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from recommender.settings.group import Group

UnknownItems: TypeAlias = Literal["report", "reject"]
"""Whether items that the catalogue lacks are left out and reported, or refuse the request."""
UnknownInputs: TypeAlias = Literal["reject", "report"]
"""Whether an input that the model does not take refuses the request, or is ignored and reported."""

LONGEST_HISTORY: Final = 100_000


class RequestSettings(Group):
    """What the API reads: limits of a request, and unknown items."""

    max_history: Annotated[int, Field(ge=1, le=LONGEST_HISTORY)] = 4096
    """Items of one history at most; a longer one is refused with INVALID_ARGUMENT. It bounds what one caller can cost
    everybody in its batch."""
    max_excluded: Annotated[int, Field(ge=0, le=100_000)] = 10_000
    """Excluded items of one request at most; more are refused with INVALID_ARGUMENT. They cost their own length only,
    so this bounds messages more than work."""
    max_candidates: Annotated[int, Field(ge=0, le=10_000)] = 10_000
    """Candidates of one request at most; more are refused with INVALID_ARGUMENT. Each is looked up by itself, so a long
    list costs more than ranking the whole of a small catalogue."""
    max_batch_requests: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """Requests of one BatchRecommend call at most; more are refused with INVALID_ARGUMENT."""
    unknown_items: UnknownItems = "report"
    """What becomes of ids and keys that the model does not know: report leaves them out and lists them in the reply,
    reject refuses the request with INVALID_ARGUMENT."""
    unknown_inputs: UnknownInputs = "reject"
    """What becomes of inputs that the request has and the model does not take, such as a user or times: reject refuses
    the request with INVALID_ARGUMENT, report answers without them and names the fields in the reply. Beside a
    candidate, inputs that either version takes are never refused."""
