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
    """Limits of a request, and how unknown items and inputs are treated."""

    max_history: Annotated[int, Field(ge=1, le=LONGEST_HISTORY)] = 4096
    """Most items of one history; a longer one is refused with INVALID_ARGUMENT. It bounds what one caller can cost the
    others in its batch."""
    max_excluded: Annotated[int, Field(ge=0, le=100_000)] = 10_000
    """Most excluded items of one request; more are refused with INVALID_ARGUMENT. They cost only their own length, so
    this bounds messages more than work."""
    max_candidates: Annotated[int, Field(ge=0, le=10_000)] = 10_000
    """Most candidates of one request; more are refused with INVALID_ARGUMENT. Each is looked up separately, so a long
    list costs more than ranking all of a small catalogue."""
    max_batch_requests: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """Most requests of one BatchRecommend call; more are refused with INVALID_ARGUMENT."""
    unknown_items: UnknownItems = "report"
    """How ids and keys that the model does not know are treated. report leaves them out and lists them in the reply.
    reject refuses the request with INVALID_ARGUMENT."""
    unknown_inputs: UnknownInputs = "reject"
    """How inputs that the model does not take, such as a user or times, are treated. reject refuses the request with
    INVALID_ARGUMENT. report answers without them and lists the fields in the reply. With a candidate, inputs that
    either version takes are never refused."""
