"""Writes the lists of what the outside relies on."""

from __future__ import annotations

from tests.public.lists import FOLDER, LISTS, text

for name in LISTS:
    (FOLDER / name).write_text(text(name), encoding="utf-8")
