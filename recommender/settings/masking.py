"""Names and passwords in URLs, masked before a text leaves the process."""

from __future__ import annotations

import re

_LONGEST = 512
_USERINFO = re.compile(rf"//[^\s/]{{0,{_LONGEST}}}(?::\S{{0,{_LONGEST}}})?@")
"""The text between `//` and the last `@`. A password with an unescaped slash or `@` is masked too."""


def masked(text: str) -> str:
    """The text with the userinfo of every URL as `***`."""
    return _USERINFO.sub("//***@", text) if "@" in text else text
