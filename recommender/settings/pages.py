"""Pages made of the settings: `.env.template` and `docs/settings.md`."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap

from recommender.settings.environment import key_of, text_of
from recommender.settings.group import Group
from recommender.settings.settings import GROUPS
from recommender.settings.sources import FIELDS

_TEMPLATE_WIDTH = 100
_PAGE = """\
# Settings

Settings of `recommender serve`. `just docs` writes this page from `recommender/settings/`. A check keeps it current.

Set a setting as an environment variable or in a file. The first source in this list wins:

1. options of `recommender serve`
2. the environment
3. `.env` in the working directory
4. the folder `RECOMMENDER_SECRETS_DIR`: one file for each setting, named by its key
5. the TOML or YAML file `RECOMMENDER_CONFIG_FILE`
6. `.env.dev` in the working directory, for local development: `just env` creates it from `.env.template`
7. the default

- An unknown `RECOMMENDER_` key or an invalid value stops the start with a sentence that names it.
- `recommender config` prints the values in force, with passwords in addresses masked.
- An empty value means the default. Enumerations ignore case.
- `${{NAME}}` in a `.env` file is replaced by that variable's value.
- A process whose environment has every setting, such as a server's child process, reads no file.

| key | default | what it does, and when to change it |
| --- | --- | --- |
{rows}
"""


def template() -> str:
    """`.env.template`: every setting with its comment and its default, commented out."""
    lines = [
        "# Settings of `recommender serve`. Copy to .env.dev for local development and remove the # where you",
        "# want another value. Precedence: command line, environment, .env, secrets directory, configuration file,",
        "# .env.dev, the defaults shown here.",
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
    """Every setting as key, default and description, group by group."""
    said = {name: text for group in GROUPS.values() for name, text in _strings_below(group).items()}
    return [(key_of(name), text_of(field.default), said.get(name, "")) for name, field in FIELDS.items()]


def _strings_below(group: type[Group]) -> dict[str, str]:
    """The string below each field of a class, as one line."""
    (tree,) = ast.parse(inspect.getsource(group)).body
    found: dict[str, str] = {}
    for pair in itertools.pairwise(ast.iter_child_nodes(tree)):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
