"""What the files of deployment say, read from them, to be held against what the code says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"


def documents(*patterns: str) -> Iterator[tuple[Path, Any]]:
    """Every YAML document of the files that match, with its file."""
    for pattern in patterns:
        paths = [path for path in sorted(ROOT.glob(pattern)) if ".venv" not in path.parts]
        assert paths, f"no file matches {pattern}"
        for path in paths:
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                yield path, document


def mappings(thing: Any) -> Iterator[dict[str, Any]]:
    """The thing's mappings, at any depth."""
    if isinstance(thing, dict):
        yield thing
        for value in thing.values():
            yield from mappings(value)
    elif isinstance(thing, list):
        for value in thing:
            yield from mappings(value)


def manifest(name: str) -> Any:
    """The first document of a file of the Kubernetes base."""
    return next(documents(f"deploy/kubernetes/base/{name}.yaml"))[1]


def service(name: str) -> Any:
    """A service of the compose file."""
    return next(documents("deploy/compose/compose.yaml"))[1]["services"][name]


def dotenv(path: Path) -> dict[str, str]:
    """Keys and values of an env file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def image_environment() -> dict[str, str]:
    """What the image's runtime stage sets."""
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    stage = text.split(" AS runtime\n")[1].split("\nFROM ")[0]
    return dict(re.findall(r"(?:ENV |    )([A-Z_]+)=(\S+)", stage))


def pod_environment() -> dict[str, str]:
    """What the server's container gets in the Kubernetes base, over what the image sets."""
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    settings = dotenv(DEPLOY / "kubernetes/base/settings.env")
    return image_environment() | settings | {each["name"]: each["value"] for each in container["env"]}


def ours(environment: dict[str, str]) -> dict[str, str]:
    """The settings among them, by field name."""
    return {
        key.removeprefix("RECOMMENDER_").lower(): value
        for key, value in environment.items()
        if key.startswith("RECOMMENDER_")
    }


def seconds(text: str) -> float:
    """A duration as compose writes it, in whole seconds."""
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return float(found[1])
