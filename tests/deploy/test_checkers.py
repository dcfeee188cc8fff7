"""Each checker of `just check-deploy` finds the mistake it is there for: planted in a copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.programs import program

pytestmark = pytest.mark.system

COPIED = (".ci", ".github", ".yamllint.yaml", "Containerfile", "deploy")
DEPLOYMENT = "deploy/kubernetes/base/deployment.yaml"
GATEWAY = "deploy/kubernetes/components/gateway/gateway.yaml"
ADAPTER = "deploy/kubernetes/components/monitoring/prometheus-adapter.yaml"
RUNTIME = "deploy/kubernetes/kserve/serving-runtime.yaml"
INFERENCE = "deploy/kubernetes/kserve/inference-service.yaml"
SERVICE = "deploy/terraform/modules/service/main.tf"

PLANTED = [
    ("containerfile", "Containerfile", "FROM ${PYTHON_IMAGE} AS python", "FROM python:latest AS python", "DL3007"),
    ("scripts", "deploy/image/smoke.sh", '"$image" > /dev/null', "$image > /dev/null", "SC2086"),
    ("yaml", DEPLOYMENT, "  minReadySeconds: 5\n", "  minReadySeconds: 5\n  minReadySeconds: 6\n", "key-duplicates"),
    ("workflows", ".github/workflows/check.yml", "    runs-on:", "    run-on:", "run-on"),
    ("workflows", ".github/workflows/check.yml", "matrix.python }}", "matrix.pyhton }}", "pyhton"),
    (
        "workflows",
        ".github/workflows/check.yml",
        "      - run: sudo",
        "      - run: echo ${{ github.event.pull_request.title }}\n      - run: sudo",
        "untrusted",
    ),
    ("workflows", ".github/workflows/deploy.yml", '"::error::digest', '"${{ inputs.digest }}', "template-injection"),
    (
        "workflows",
        ".github/workflows/release.yml",
        "actions/setup-python@5fda3b95a4ea91299a34e894583c3862153e4b97",
        "actions/setup-python@v7",
        "unpinned-uses",
    ),
    ("issue-forms", ".github/ISSUE_TEMPLATE/bug.yml", "type: dropdown", "type: dropdwn", "dropdwn"),
    ("update-bot", ".github/renovate.json", '"prConcurrentLimit": 5', '"prConcurrentLimit": "five"', "five"),
    ("compose", "deploy/compose/compose.yaml", "read_only: true", "readonly: true", "readonly"),
    ("prometheus", "deploy/compose/prometheus.yaml", "scrape_interval: 5s", "scrape_interval: 5", "duration"),
    ("envoy", "deploy/envoy/envoy.yaml", "codec_type: HTTP2", "codec_type: HTTP9", "HTTP9"),
    ("prometheus", ADAPTER, "> 0)", "> )", "unexpected"),
    ("kubernetes", DEPLOYMENT, "maxUnavailable: 0", "maxUnavailble: 0", "maxUnavailble"),
    ("kubernetes", GATEWAY, "backendRefs:", "backends:", "backends"),
    ("kubernetes", GATEWAY, "kind: GRPCRoute\nmetadata", "kind: GRPCRuote\nmetadata", "has no schema"),
    ("kubernetes", RUNTIME, "protocolVersions:", "protocolVersion:", "protocolVersion"),
    ("kubernetes", INFERENCE, "storageUri: pvc://", "storageUri: pv://", "pv://recommender-models"),
    ("kubernetes", "deploy/kubernetes/bulk/job.yaml", "backoffLimit: 5", "backofLimit: 5", "backofLimit"),
    ("kubernetes", "deploy/kubernetes/kuberay/ray-job.yaml", "workerGroupSpecs:", "workerGroups:", "workerGroups"),
    ("kubernetes-policies", INFERENCE, "enableServiceLinks: false", "enableServiceLinks: true", "enableServiceLinks"),
    ("kubernetes", "deploy/kubernetes/base/kustomization.yaml", "services.yaml", "servics.yaml", "servics.yaml"),
    ("kubernetes-policies", DEPLOYMENT, "enableServiceLinks: false", "enableServiceLinks: true", "enableServiceLinks"),
    (
        "kubernetes-policies",
        DEPLOYMENT,
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "CKV_K8S_22",
    ),
    ("terraform", SERVICE, "internal                   =", "internal =", "terraform fmt"),
    (
        "terraform",
        "deploy/terraform/main.tf",
        "module.registry.repository_arn",
        "module.registry.arn",
        "module.registry.arn",
    ),
    ("terraform", "deploy/terraform/variables.tf", 'variable "public" {', 'variable "pubic" {', "var.public"),
    ("terraform", SERVICE, "aws_lb_target_group.this.arn\n", "aws_lb_target_gruop.this.arn\n", "aws_lb_target_gruop"),
    ("terraform", "deploy/terraform/main.tf", "  name   = local.name\n", "  nme    = local.name\n", "nme"),
    ("terraform-policies", SERVICE, "drop_invalid_header_fields = true", "drop_invalid_header_fields = false", "131"),
]


def check(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    project = ROOT / "deploy" / "checkers"
    return subprocess.run(
        [program("uv"), "run", "--quiet", "--project", project, "--locked", "python", project / "check.py", *words],
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files of deployment, with one overlay of Kubernetes for all."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".venv"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    for overlay in (tmp_path / "deploy/kubernetes/overlays").iterdir():
        if overlay.name != "cpu":
            shutil.rmtree(overlay)
    return tmp_path


@pytest.mark.parametrize(("name", "file", "right", "wrong", "says"), PLANTED)
def test_a_planted_mistake_is_found(copy: Path, name: str, file: str, right: str, wrong: str, says: str) -> None:
    path = copy / file
    text = path.read_text(encoding="utf-8")
    assert right in text, "the place to plant a mistake in has changed"
    path.write_text(text.replace(right, wrong, 1), encoding="utf-8")

    done = check(name, "--root", str(copy))

    assert done.returncode == 1, done.stdout + done.stderr
    assert says in done.stdout


def test_every_check_has_a_planted_mistake() -> None:
    done = check("--help")

    names = {name for name, *_ in PLANTED}
    offered = done.stdout.split("Of ")[1].split(";")[0].replace("│", " ")
    assert {word.strip() for word in " ".join(offered.split()).split(",")} == names


def test_files_that_are_gone_are_no_pass(copy: Path) -> None:
    shutil.rmtree(copy / ".github" / "workflows")

    done = check("workflows", "--root", str(copy))

    assert done.returncode == 1
    assert "no file matches" in done.stdout
