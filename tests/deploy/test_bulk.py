"""The bulk jobs of deployment call the command as it is, with the Ray of the lock."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import typer.main

from recommender.cli.scoring import score
from tests.support.declared import documents
from tests.support.paths import ROOT

FOLDER = "deploy/kubernetes"


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of `recommender score …`, as the command itself reads them."""
    program, name, *rest = words
    assert (program, name) == ("recommender", "score")
    app = typer.Typer()
    app.command()(score)
    with typer.main.get_command(app).make_context("score", rest) as context:
        return dict(context.params)


def test_the_job_scores_what_its_pod_mounts_and_is_tried_again_only_where_that_helps() -> None:
    ((_, job),) = documents(f"{FOLDER}/bulk/job.yaml")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parsed(["recommender", *container["args"]])
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]

    for where in (options["model"], options["input_"], options["output"]):
        assert any(where.startswith(f"{path}/") for path in mounted), where
    # Exit code 3, stopped by a signal, is tried again.
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [1, 2]}
    assert pod["restartPolicy"] == "Never"


def test_the_ray_job_calls_the_command_on_the_ray_of_the_lock() -> None:
    ((_, job),) = documents(f"{FOLDER}/kuberay/ray-job.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    options = parsed(job["spec"]["entrypoint"].split())
    (workers,) = cluster["workerGroupSpecs"]
    (worker,) = workers["template"]["spec"]["containers"]
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))

    assert cluster["rayVersion"] in {each["version"] for each in lock["package"] if each["name"] == "ray"}
    assert options["on"] == "ray"
    assert options["threads"] == int(worker["resources"]["requests"]["cpu"])
    mounted = {each["mountPath"] for each in worker["volumeMounts"]}
    for where in (options["model"], options["input_"], options["output"]):
        assert any(where.startswith(f"{path}/") for path in mounted), where


@pytest.mark.parametrize("name", ["bulk", "kuberay"])
def test_the_images_are_targets_of_the_containerfile(name: str) -> None:
    ((_, kustomization),) = documents(f"{FOLDER}/{name}/kustomization.yaml")
    (image,) = kustomization["images"]
    target = image["newTag"].rpartition("-")[2]

    assert f" AS {target}\n" in (ROOT / "Containerfile").read_text(encoding="utf-8")
