"""Settings of operations: probes, workers, draining, metrics and the log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from recommender.settings.group import Group

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["auto", "text", "json"]


class OperationSettings(Group):
    """Settings of the life cycle, the supervisor and observability."""

    health_port: Annotated[int | None, Field(ge=0, le=65535)] = None
    """TCP port of a health service for an orchestrator's probes, at RECOMMENDER_HOST: plaintext, no tokens, the names
    startup, readiness and liveness. 0 takes a free port. Empty: none."""
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Servers on the port, each a process with a share of the threads and of the backlog. 0: one for each CPU. More
    than 1 pays off if the event loop, not the engine, is the limit (docs/workers.md)."""
    drain_wait_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 0
    """Milliseconds that a draining server, already NOT_SERVING, still accepts calls: as long as a load balancer needs
    to notice by its health checks. 0 if endpoints are removed before the signal."""
    drain_grace_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 10_000
    """Milliseconds that accepted requests get to finish after SIGTERM, SIGINT or SIGHUP. Keep it below the time after
    which the orchestrator kills."""
    metrics_port: Annotated[int | None, Field(ge=0, le=65535)] = None
    """TCP port of the Prometheus endpoint, at RECOMMENDER_HOST. 0 takes a free port; the log names it. Empty: no
    endpoint. `recommender top` reads it too."""
    log_level: LogLevel = "info"
    """Lowest level to log: debug, info, warning, error."""
    log_format: LogFormat = "auto"
    """auto, text or json. auto writes text in a terminal and one JSON object a line elsewhere."""
    config_file: Path | None = None
    """TOML or YAML file of settings, by their names without RECOMMENDER_, in lower case. A .toml file has lines such
    as `port = 50051`, a .yaml or .yml file `port: 50051`. Read from the command line and the
    environment only. Empty: none."""
    secrets_dir: Path = Path("/run/secrets")
    """Folder of secrets: a file RECOMMENDER_REGISTRY_URI in it holds the value of that setting. Files with other names
    are ignored. Only the default folder may be missing. Read from the command line and the environment only."""
