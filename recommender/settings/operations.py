"""Settings of operations: probes, workers, draining, metrics and the log."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["auto", "text", "json"]


class OperationSettings(BaseModel):
    """What the life cycle, the supervisor and observability read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    health_port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description="TCP port of a health service for an orchestrator's probes, at RECOMMENDER_HOST: plaintext, no "
            "tokens, the names startup, readiness and liveness. 0 takes a free one. Empty: none.",
        ),
    ] = None
    workers: Annotated[
        int,
        Field(
            ge=0,
            le=256,
            description="Servers on the port, each a process with a share of the threads and of the backlog. 0: one "
            "for each CPU. More than 1 pays off where the event loop, not the engine, is the limit (docs/workers.md).",
        ),
    ] = 1
    drain_wait_ms: Annotated[
        int,
        Field(
            ge=0,
            le=3_600_000,
            description="Milliseconds that a draining server, unready already, still takes calls: as long as a load "
            "balancer that asks for health needs to notice. 0 where endpoints are taken out before the signal comes.",
        ),
    ] = 0
    drain_grace_ms: Annotated[
        int,
        Field(
            ge=0,
            le=3_600_000,
            description="Milliseconds that accepted requests get to finish after SIGTERM or SIGINT. Keep it below the "
            "time after which the orchestrator kills.",
        ),
    ] = 10_000
    metrics_port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description="TCP port of the Prometheus endpoint, at RECOMMENDER_HOST. 0 takes a free one; the log says "
            "which. Empty: no endpoint. `recommender top` reads it too.",
        ),
    ] = None
    log_level: Annotated[LogLevel, Field(description="Least severe events to log: debug, info, warning, error.")] = (
        "info"
    )
    log_format: Annotated[
        LogFormat,
        Field(description="auto, text or json. auto writes text in a terminal and one JSON object a line elsewhere."),
    ] = "auto"
