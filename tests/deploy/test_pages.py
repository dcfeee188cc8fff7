"""The site's branch has what was built last, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    path = tmp_path / "remote.git"
    subprocess.run(["git", "init", "--quiet", "--bare", path], check=True)
    return path


def publish(site: Path, remote: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", "deploy/pages.sh", str(site), str(remote)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def asked(remote: Path, *words: str) -> list[str]:
    command = ["git", "--git-dir", str(remote), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_branch_is_the_last_site_in_one_commit(tmp_path: Path, remote: Path) -> None:
    for page in ("old", "new"):
        site = tmp_path / page
        (site / page).mkdir(parents=True)
        for file in (site / "index.html", site / page / "index.html"):
            file.write_text(page, encoding="utf-8")
        done = publish(site, remote)
        assert done.returncode == 0, done.stderr

    assert asked(remote, "ls-tree", "-r", "--name-only", "gh-pages") == [".nojekyll", "index.html", "new/index.html"]
    assert asked(remote, "show", "gh-pages:index.html") == ["new"]
    assert asked(remote, "rev-list", "--count", "gh-pages") == ["1"]


def test_an_empty_site_replaces_nothing(tmp_path: Path, remote: Path) -> None:
    (tmp_path / "site").mkdir()

    done = publish(tmp_path / "site", remote)

    assert (done.returncode, done.stderr) == (1, f"pages: {tmp_path / 'site'} has no index.html\n")
    assert asked(remote, "branch", "--list") == []
