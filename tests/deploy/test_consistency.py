"""Ports, probes, drain times and settings in deployment files and pages are those of the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from recommender.api.metadata import SERVICE_NAME
from recommender.edges.health import SERVICE_NAME as HEALTH_NAME
from recommender.edges.open_inference import SERVICE_NAME as INFERENCE_NAME
from recommender.observability import workers
from recommender.observability.instruments import INSTRUMENTS
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.server.health_port import LIVENESS, READINESS, STARTUP
from recommender.settings.environment import key_of
from recommender.settings.settings import Settings
from recommender.settings.sources import FIELDS
from tests.support.declared import (
    DEPLOY,
    documents,
    image_environment,
    manifest,
    mappings,
    ours,
    pod_environment,
    seconds,
    service,
)
from tests.support.paths import ROOT

DEFAULT = Settings()
LEAVING_SECONDS = 5.0
"""Time to end besides the grace for requests: last answers, and the platform's own needs."""
FARGATE_KILLS_AFTER = 120
KSERVE = "deploy/kubernetes/kserve"


def metric_names() -> set[str]:
    """What a scrape of the server calls its series."""
    names = set()
    for instrument in INSTRUMENTS:
        endings = ("_bucket", "_count", "_sum") if instrument.kind == "histogram" else ("",)
        names |= {instrument.prometheus_name + ending for ending in endings}
    return names


def texts() -> list[Path]:
    """Every file that may name a setting and is not written from the settings themselves."""
    files = [
        ROOT / "Containerfile",
        ROOT / "README.md",
        ROOT / "justfile",
        *ROOT.glob(".github/**/*.yml"),
        *ROOT.glob("docs/**/*.md"),
        *(path for path in DEPLOY.rglob("*") if path.suffix in {".md", ".yaml", ".env", ".tf", ".sh", ".json"}),
    ]
    return [path for path in files if ".venv" not in path.parts]


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_that_is_named_is_one_that_the_code_has(path: Path) -> None:
    named = set(re.findall(r"\bRECOMMENDER_[A-Z0-9_]*", path.read_text(encoding="utf-8")))
    known = {key_of(field) for field in FIELDS}

    # A name that ends in an underscore, or the bare prefix, means all names that begin with it.
    unknown = {
        name for name in named if not (name in known or (name.endswith("_") and any(k.startswith(name) for k in known)))
    }

    assert not unknown


def test_the_pod_s_settings_are_values_that_the_server_takes() -> None:
    settings = Settings.model_validate(ours(pod_environment()))

    assert settings.network.host == "0.0.0.0"  # noqa: S104 (a pod's own network)
    assert str(settings.models.weights_dir) == "/models"


def test_the_compose_file_s_settings_are_values_that_the_server_takes() -> None:
    environment = image_environment() | service("server")["environment"]
    assert environment["RECOMMENDER_MODEL"] == "${RECOMMENDER_MODEL:-}"

    settings = Settings.model_validate(ours(environment | {"RECOMMENDER_MODEL": "models:/reference@champion"}))

    assert settings.operations.log_format == "json"
    assert settings.models.registry_uri == "http://mlflow:5000"


def test_overlays_and_components_set_only_what_the_server_takes() -> None:
    for path, document in documents("deploy/kubernetes/overlays/*/*.yaml", "deploy/kubernetes/components/*/*.yaml"):
        set_here = {
            thing["name"]: thing["value"]
            for thing in mappings(document)
            if str(thing.get("name", "")).startswith("RECOMMENDER_") and "value" in thing
        }
        taken = Settings.model_validate(ours(pod_environment() | set_here))
        named = {name for group in taken.model_fields_set for name in getattr(taken, group).model_fields_set}
        assert set(ours(set_here)) <= named, path


def test_every_port_is_the_server_s() -> None:
    port = DEFAULT.network.port
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    containerfile = (ROOT / "Containerfile").read_text(encoding="utf-8")

    assert {each["name"]: each["containerPort"] for each in container["ports"]}["grpc"] == port
    assert set(re.findall(r"^EXPOSE (\d+)", containerfile, re.MULTILINE)) == {str(port)}
    assert service("server")["ports"][0] == f"127.0.0.1:{port}:{port}"
    assert f"port = {port}\n" in (DEPLOY / "terraform/modules/service/main.tf").read_text(encoding="utf-8")
    for _, each in documents("deploy/kubernetes/base/services.yaml"):
        assert {(p["port"], p["targetPort"]) for p in each["spec"]["ports"] if p["name"] == "grpc"} == {(port, "grpc")}
    for path, each in documents("deploy/kubernetes/**/*.yaml"):
        for reference in mappings(each):
            if "backendRefs" in reference:
                assert [backend["port"] for backend in reference["backendRefs"]] == [port], path


def test_the_metrics_are_scraped_where_they_are() -> None:
    pod = Settings.model_validate(ours(pod_environment()))
    compose = Settings.model_validate(ours(image_environment() | service("server")["environment"]))
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    (monitor,) = (each for _, each in documents("deploy/kubernetes/components/monitoring/pod-monitor.yaml"))
    (_, scraped) = next(documents("deploy/compose/prometheus.yaml"))

    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert ports[endpoint["port"]] == pod.operations.metrics_port
    assert endpoint["path"] == "/metrics"
    assert pod.operations.metrics_port in {
        each["port"] for rule in manifest("network-policy")["spec"]["ingress"] for each in rule["ports"]
    }
    assert scraped["scrape_configs"][0]["static_configs"] == [
        {"targets": [f"server:{compose.operations.metrics_port}"]}
    ]


def test_the_autoscaler_asks_for_metrics_that_the_adapter_makes_of_ours() -> None:
    (_, adapter) = next(documents("deploy/kubernetes/components/monitoring/prometheus-adapter.yaml"))
    asked = {
        metric["pods"]["metric"]["name"]
        for metric in manifest("autoscaler")["spec"]["metrics"]
        if metric["type"] == "Pods"
    }

    assert asked == {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    for rule in adapter["rules"]["custom"]:
        for query in (rule["seriesQuery"], rule["metricsQuery"]):
            named = set(re.findall(r"\b(?:recommender|rpc|process)_\w+", query))
            assert named
            assert named <= metric_names()


def test_probes_ask_what_the_server_answers() -> None:
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]

    port = Settings.model_validate(ours(pod_environment())).operations.health_port
    assert {each["name"]: each["containerPort"] for each in container["ports"]}["health"] == port
    for probe, name in (("startupProbe", STARTUP), ("readinessProbe", READINESS), ("livenessProbe", LIVENESS)):
        assert container[probe]["grpc"] == {"port": port, "service": name}


def test_the_load_balancer_s_health_check_is_a_method_of_the_service() -> None:
    text = (DEPLOY / "terraform/modules/service/main.tf").read_text(encoding="utf-8")

    (path,) = re.findall(r'path += "/([^"]+)"', text)
    name, method = path.split("/")

    assert name == SERVICE_NAME
    assert method in api.DESCRIPTOR.services_by_name["RecommenderService"].methods_by_name


def test_the_gateway_s_route_names_the_services() -> None:
    routes = [
        each for _, each in documents("deploy/kubernetes/components/gateway/*.yaml") if each["kind"] == "GRPCRoute"
    ]

    assert [m["method"]["service"] for r in routes for rule in r["spec"]["rules"] for m in rule["matches"]] == [
        SERVICE_NAME,
        INFERENCE_NAME,
    ]


def test_the_proxy_in_front_has_a_route_for_each_service() -> None:
    (_, config) = next(documents("deploy/envoy/envoy.yaml"))
    matches = [each["match"] for each in mappings(config) if "match" in each]

    assert {match["prefix"] for match in matches if "prefix" in match} == {
        f"/{name}/" for name in (SERVICE_NAME, INFERENCE_NAME, HEALTH_NAME)
    }


def test_kubernetes_kills_only_after_the_drain() -> None:
    pod = manifest("deployment")["spec"]["template"]["spec"]
    settings = Settings.model_validate(ours(pod_environment()))
    grace, before = settings.operations.drain_grace_ms / 1e3, settings.operations.drain_wait_ms / 1e3
    readiness = pod["containers"][0]["readinessProbe"]

    assert pod["terminationGracePeriodSeconds"] >= before + grace + LEAVING_SECONDS
    assert before >= readiness["periodSeconds"] * readiness["failureThreshold"]


def test_kserve_starts_the_server_on_the_model_that_its_object_names() -> None:
    (_, runtime), (_, served) = documents(f"{KSERVE}/serving-runtime.yaml", f"{KSERVE}/inference-service.yaml")
    (container,) = runtime["spec"]["containers"]
    predictor = served["spec"]["predictor"]
    name = served["metadata"]["name"]
    environment = {each["name"]: each["value"].replace("{{.Name}}", name) for each in container["env"]}
    settings = Settings.model_validate(ours(image_environment() | environment))
    (format_,) = runtime["spec"]["supportedModelFormats"]

    assert settings.models.model == f"/mnt/models/{name}"
    assert settings.network.open_inference
    assert [each["containerPort"] for each in container["ports"]] == [settings.network.port]
    assert settings.operations.metrics_port == int(runtime["spec"]["annotations"]["prometheus.kserve.io/port"])
    for probe, service_name in (("startupProbe", STARTUP), ("readinessProbe", READINESS), ("livenessProbe", LIVENESS)):
        assert container[probe]["grpc"] == {"port": settings.operations.health_port, "service": service_name}
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert predictor["model"]["modelFormat"] == {key: format_[key] for key in ("name", "version")}
    assert predictor["model"]["protocolVersion"] in runtime["spec"]["protocolVersions"]
    drain = (settings.operations.drain_wait_ms + settings.operations.drain_grace_ms) / 1e3
    assert predictor["terminationGracePeriodSeconds"] >= drain + LEAVING_SECONDS


def test_compose_kills_only_after_the_drain() -> None:
    for path, each in documents("deploy/compose/compose.yaml", "deploy/compose/dev.yaml"):
        server = each["services"]["server"]
        settings = Settings.model_validate(ours(server["environment"]))
        drain = (settings.operations.drain_wait_ms + settings.operations.drain_grace_ms) / 1e3
        assert seconds(server["stop_grace_period"]) >= drain + LEAVING_SECONDS, path


def test_fargate_kills_only_after_the_drain() -> None:
    module = (DEPLOY / "terraform/modules/service/main.tf").read_text(encoding="utf-8")
    variables = (DEPLOY / "terraform/variables.tf").read_text(encoding="utf-8")

    (beside,) = re.findall(r"stop_timeout = var\.drain_seconds \+ (\d+)", module)
    (most,) = re.findall(r"var\.drain_seconds <= (\d+)", variables)

    assert "RECOMMENDER_DRAIN_GRACE_MS = tostring(var.drain_seconds * 1000)" in module
    assert "stopTimeout            = local.stop_timeout" in module
    assert int(beside) >= LEAVING_SECONDS
    assert int(most) + int(beside) <= FARGATE_KILLS_AFTER


def test_containers_are_asked_for_health_by_a_command_that_there_is() -> None:
    containerfile = (ROOT / "Containerfile").read_text(encoding="utf-8")
    module = (DEPLOY / "terraform/modules/service/main.tf").read_text(encoding="utf-8")
    asked = [
        json.loads(found)
        for found in re.findall(
            r'(?:CMD|command +=) (\["(?:CMD", ")?recommender", "health".*?\])', containerfile + module
        )
    ] + [service("server")["healthcheck"]["test"]]

    assert len(asked) == 3
    for command in asked:
        words = [word for word in command if word != "CMD"]
        done = subprocess.run([sys.executable, "-m", *words, "--help"], capture_output=True, check=False)
        assert done.returncode == 0, words
        assert words[3:] in ([], [LIVENESS], [READINESS])


def test_no_pod_gets_variables_named_after_services() -> None:
    pods = [
        (path, thing)
        for path, each in documents("deploy/kubernetes/base/*.yaml")
        for thing in mappings(each)
        if "containers" in thing
    ]

    assert pods
    for path, pod in pods:
        assert pod.get("enableServiceLinks") is False, path


def test_every_action_is_pinned_to_one_commit_and_names_its_version() -> None:
    used = {
        found
        for path in ROOT.glob(".github/workflows/*.yml")
        for found in re.findall(r"uses: ([^$\s].*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    pins = [re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", use) for use in sorted(used)]
    names = [pin[1] for pin in pins if pin is not None]

    assert len(names) == len(used), used
    assert len(set(names)) == len(names), "two commits of one action"


def test_every_image_that_is_not_pinned_by_a_digest_is_listed() -> None:
    containerfile = (ROOT / "Containerfile").read_text(encoding="utf-8")
    used = set(re.findall(r"^ARG \w+_IMAGE=(\S+)", containerfile, re.MULTILINE))
    for path in DEPLOY.glob("compose/*.yaml"):
        services = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("services", {})
        used |= {each["image"] for each in services.values() if isinstance(each, dict) and "image" in each}
    unpinned = {image for image in used if "@sha256:" not in image and not image.startswith("localhost/")}
    page = (ROOT / "docs" / "supply-chain.md").read_text(encoding="utf-8")

    assert unpinned == set(re.findall(r"^\| `([^`]+)` \| image", page, re.MULTILINE))


def test_the_run_book_has_every_alert_and_no_other() -> None:
    (_, rules) = next(documents("deploy/observability/rules.yaml"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")

    assert sorted(alerts) == sorted(re.findall(r"^## (\w+)$", page, re.MULTILINE))


def test_every_alert_links_to_its_section_of_the_run_book() -> None:
    (_, rules) = next(documents("deploy/observability/rules.yaml"))
    anchors = set()
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
                path = address.partition("/blob/main/")[2]
                titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {title.lower().replace(" ", "-") for title in titles}, rule["alert"]
                assert anchor == rule["alert"].lower()
                anchors.add(anchor)

    assert anchors


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_metric_that_a_page_asks_for_is_one_that_the_server_has(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(r"\b(?:recommender|rpc_server|process)_[a-z_]+_(?:total|seconds|bytes|sum|count|bucket)\b", text)
    )

    supervised = {workers.UP, f"{workers.DEATHS}_total"}
    assert named <= metric_names() | supervised | {instrument.prometheus_name for instrument in INSTRUMENTS}


def test_what_compose_mounts_is_there_and_what_grafana_provisions_is_mounted() -> None:
    for path, each in documents("deploy/compose/compose.yaml", "deploy/compose/dev.yaml"):
        for name, server in each["services"].items():
            for volume in server.get("volumes", []):
                source = volume.split(":")[0]
                assert not source.startswith(".") or (path.parent / source).exists(), (path, name, volume)

    (_, provided) = next(documents("deploy/compose/grafana/provisioning/dashboards/dashboards.yaml"))
    folders = {volume.split(":")[1] for volume in service("grafana")["volumes"]}
    assert {each["options"]["path"] for each in provided["providers"]} < folders


def test_data_sources_are_services_of_the_compose_file() -> None:
    (_, compose) = next(documents("deploy/compose/compose.yaml"))
    (_, provided) = next(documents("deploy/compose/grafana/provisioning/datasources/datasources.yaml"))
    (_, collector) = next(documents("deploy/compose/collector.yaml"))

    for source in provided["datasources"]:
        assert urlsplit(source["url"]).hostname in compose["services"]
    (kind,) = [source["type"] for source in provided["datasources"] if source.get("isDefault")]
    assert kind == "prometheus"
    receiver = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    endpoint = urlsplit(service("server")["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert (endpoint.hostname, str(endpoint.port)) == ("collector", receiver.rsplit(":", 1)[1])
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])


def test_one_job_name_in_alerts_and_scrapes() -> None:
    text = (DEPLOY / "observability" / "rules.yaml").read_text(encoding="utf-8")
    (_, scraped) = next(documents("deploy/compose/prometheus.yaml"))
    (_, kustomization) = next(documents("deploy/kubernetes/base/kustomization.yaml"))
    (_, monitor) = next(documents("deploy/kubernetes/components/monitoring/pod-monitor.yaml"))

    labels = {key: value for pairs in kustomization["labels"] for key, value in pairs["pairs"].items()}
    (asked,) = set(re.findall(r'job="(\w+)"', text))
    assert {each["job_name"] for each in scraped["scrape_configs"]} == {asked}
    assert labels[monitor["spec"]["jobLabel"]] == asked
