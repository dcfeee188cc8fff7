"""The Containerfile for real: built without a registry, started as production starts it, and looked into."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.paths import ROOT

PROGRAMS = ("buildah", "podman", "runc", "debootstrap")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS),
    reason="needs apt-get install buildah podman runc debootstrap",
)
@pytest.mark.parametrize("target", ["cpu", "bundled"])
def test_the_image_answers_has_nothing_too_much_and_stops_clean(target: str) -> None:
    done = subprocess.run(
        ["bash", ROOT / "deploy" / "image" / "offline.sh", target], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "user, tools and file system are as they should be" in done.stdout
    assert f"localhost/recommender:{target} answers, stops with 0" in done.stdout
