"""The public interface changes on purpose: in a commit that writes the list again and adds a changelog line."""

from __future__ import annotations

import pytest

from tests.public.lists import FOLDER, LISTS, text


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_what_others_rely_on_is_the_codes(name: str) -> None:
    assert text(name) == (FOLDER / name).read_text(encoding="utf-8"), (
        f"tests/public/{name} differs from the code: if that is meant, run `just public` and add a line to CHANGELOG.md"
    )
