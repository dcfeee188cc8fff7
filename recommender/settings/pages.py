"""Pages made of the settings: `.env.template` and `docs/settings.md`."""

from __future__ import annotations

import textwrap

from recommender.settings.environment import key_of, text_of
from recommender.settings.settings import FIELDS

_TEMPLATE_WIDTH = 100
_PAGE = """\
# Settings

Written by `just docs` from `recommender/settings/`; a check fails when it is out of date.

Every setting is an environment variable, or a line in a `.env` file in the working directory. What
comes first in this list wins:

1. options of `recommender serve`
2. the environment
3. `.env`
4. `.env.dev`, for local development: `just env` makes it from `.env.template`
5. the default

An unknown `RECOMMENDER_` key, or a value that a setting cannot have, stops the start with a sentence
that says which. `recommender config` prints what is in force, secrets masked. Empty means: the default.

| key | default | what it does, and when to move it |
| --- | --- | --- |
{rows}
"""


def template() -> str:
    """`.env.template`: every setting with its comment and its default, commented out."""
    lines = [
        "# Settings of `recommender serve`. Copy to .env.dev for local development and take out the # where you",
        "# want another value. Precedence: command line, environment, .env, .env.dev, the defaults shown here.",
    ]
    for key, default, description in described():
        lines += [
            "",
            *textwrap.wrap(description, _TEMPLATE_WIDTH, initial_indent="# ", subsequent_indent="# "),
        ]
        lines.append(f"# {key}={default}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """`docs/settings.md`: the same as a page."""
    rows = [
        f"| `{key}` | {f'`{default}`' if default else 'none'} | {description} |"
        for key, default, description in described()
    ]
    return _PAGE.format(rows="\n".join(rows))


def described() -> list[tuple[str, str, str]]:
    """Every setting as key, default and description, in the order a reader wants them."""
    return [(key_of(name), text_of(field.default), field.description or "") for name, field in FIELDS.items()]
