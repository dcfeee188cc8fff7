"""The standard OTEL_* variables: which signals are sent, how often, and which share is sampled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from recommender.errors import SettingsError

_SAMPLERS = ("always_on", "always_off", "traceidratio")


@dataclass(frozen=True, slots=True)
class Otlp:
    """Signals to send by the standard OTEL_* variables, and the seconds between two sendings of metrics.

    The OpenTelemetry SDK reads the other variables; `load` refuses values that the SDK would ignore.
    """

    traces: bool = False
    metrics: bool = False
    interval: float = 60.0
    ratio: float = 1.0
    """Sampled share of the calls without a caller's trace."""

    @classmethod
    def load(cls) -> Otlp:
        """Read the environment. Raises SettingsError on a value that is not supported."""
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return cls()
        sampler = _otel("OTEL_TRACES_SAMPLER").removeprefix("parentbased_")
        ratio = 0.0 if sampler == "always_off" else 1.0
        if sampler == "traceidratio":
            ratio = _otel_number("OTEL_TRACES_SAMPLER_ARG", 1.0)
        if not 0 <= ratio <= 1:
            raise SettingsError(f"OTEL_TRACES_SAMPLER_ARG={_otel('OTEL_TRACES_SAMPLER_ARG')!r} is not between 0 and 1")
        _one_of("OTEL_TRACES_SAMPLER", (*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS)))
        interval = _otel_number("OTEL_METRIC_EXPORT_INTERVAL", 60_000.0) / 1e3
        if interval <= 0:
            raise SettingsError("OTEL_METRIC_EXPORT_INTERVAL must be more than 0 milliseconds")
        return cls(traces=_sent("TRACES"), metrics=_sent("METRICS"), interval=interval, ratio=ratio)


def _sent(signal: str) -> bool:
    """True if an endpoint is set and the exporter is not `none`."""
    _one_of(f"OTEL_{signal}_EXPORTER", ("otlp", "none"))
    for scope in ("", f"{signal}_"):
        _one_of(f"OTEL_EXPORTER_OTLP_{scope}PROTOCOL", ("grpc",))
    endpoint = _otel("OTEL_EXPORTER_OTLP_ENDPOINT") or _otel(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return bool(endpoint) and _otel(f"OTEL_{signal}_EXPORTER") != "none"


def _otel(key: str) -> str:
    return os.environ.get(key, "").strip()


def _otel_number(key: str, default: float) -> float:
    try:
        return float(_otel(key) or default)
    except ValueError:
        raise SettingsError(f"{key}={_otel(key)!r} is not a number") from None


def _one_of(key: str, known: Sequence[str]) -> None:
    if _otel(key) and _otel(key) not in known:
        raise SettingsError(f"{key}={_otel(key)!r} cannot be used here: it may be {', '.join(known)}")
