"""`recommender token`: what it writes, and that a tokens file never breaks."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recommender.cli.main import app
from recommender.security.access import Access, read_grants


def token(*words: str) -> Result:
    return CliRunner().invoke(app, ["token", *words])


def good(path: Path, *tokens: str) -> list[str]:
    """The names that a server with this file knows the tokens by."""
    access = Access()
    access.replace(read_grants([path.read_bytes()]))
    return [access.enter(f"Bearer {each}").name for each in tokens]


def test_tokens_are_appended_to_a_file_that_its_owner_alone_may_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    web, app_ = (token(name, "--tokens-file", str(path)).stdout.strip() for name in ("web", "mobile app"))

    assert good(path, web, app_) == ["web", "mobile app"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_twice_in_a_row_rotates_and_the_last_token_stays_good(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    first, second, third = (token("web", "--tokens-file", str(path)).stdout.strip() for _ in range(3))

    assert good(path, second, third) == ["web", "web"]
    assert first not in path.read_text(encoding="utf-8")
    assert len(read_grants([path.read_bytes()])["web"].sha256) == 2


def test_rotation_keeps_all_else(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    token("web", "--days", "1", "--tokens-file", str(path))
    token("job", "--tokens-file", str(path))
    path.write_text(
        "# ours\n" + path.read_text(encoding="utf-8").replace('["job"]', 'burst = 4 # a lot\n\n["job"]'),
        encoding="utf-8",
    )
    path.chmod(0o640)
    before = read_grants([path.read_bytes()])
    made = token("web", "--days", "30", "--tokens-file", str(path))
    after = read_grants([path.read_bytes()])
    text = path.read_text(encoding="utf-8")

    assert good(path, made.stdout.strip()) == ["web"]
    assert after["job"] == before["job"]
    assert after["web"].burst == 4
    assert after["web"].expires is not None
    assert before["web"].expires is not None
    assert 28 <= (after["web"].expires - before["web"].expires).days <= 29
    assert text.startswith("# ours\n")
    assert "# a lot" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("web = {", "is not TOML"),
        ('[web]\nsha256 = ["short"]', "web.sha256.0"),
        (f'web = {{sha256 = ["{"0" * 64}"]}}', "header"),
    ],
)
def test_a_file_that_cannot_be_changed_is_left_as_it_was(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content, encoding="utf-8")
    made = token("web", "--tokens-file", str(path))

    assert (made.exit_code, made.stdout) == (2, "")
    assert sentence in made.stderr
    assert path.read_text(encoding="utf-8") == content


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    made = token("web", "--tokens-file", str(tmp_path / "none" / "tokens.toml"))

    assert (made.exit_code, made.stdout) == (2, "")
    assert made.stderr.startswith("recommender: ")


def test_a_token_has_the_scopes_that_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    file = ("--tokens-file", str(path))
    token("web", *file)
    token("shop", "--scope", "recommend", "--scope", "catalogue", *file)
    token("shop", *file)
    scopes = {name: grant.scopes for name, grant in read_grants([path.read_bytes()]).items()}
    other, unknown = token("web", "--scope", "catalogue", *file), token("job", "--scope", "write", *file)

    assert scopes == {"web": ("recommend",), "shop": ("recommend", "catalogue")}
    assert (other.exit_code, unknown.exit_code) == (2, 2)
    assert "change them there" in other.stderr
    assert "'write' is not a scope" in unknown.stderr
    assert list(read_grants([path.read_bytes()])) == ["web", "shop"]
