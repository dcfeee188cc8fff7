"""Labels of versions and page tokens, shared by the calls of CatalogueService."""

from __future__ import annotations

import json

from recommender.errors import InvalidRequestError, Violation, quoted

PAGE = 1_000
"""Items of a page by default."""


def check_label(model: str, why: str) -> None:
    """Raise InvalidRequestError if a request names a model and no version of it; `why` says what needs one."""
    if "@" not in model:
        raise InvalidRequestError(Violation("model", f"{quoted(model)} names no version, and {why}: name@version"))


def token_of(model: str, item: str) -> str:
    """The token of the page that follows this item."""
    return json.dumps([model, item], ensure_ascii=False)


def place_of(token: str) -> tuple[str, str] | None:
    """The model and item of a page token; None for the first page.

    Raises InvalidRequestError if the token is not one of this service.
    """
    if not token:
        return None
    try:
        model, item = json.loads(token)
    except ValueError:
        model = item = None
    if not isinstance(model, str) or not isinstance(item, str):
        raise InvalidRequestError(Violation("page_token", f"{quoted(token)} is not from `next_page_token`"))
    return model, item
