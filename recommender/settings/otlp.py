"""The standard OTEL_* variables: which signals are sent and how, and which share is sampled.

The OpenTelemetry SDK reads most of them itself. It raises on some values and passes over others with a warning, so
`Otlp.load` checks the values of what is sent first: each fault is one sentence. Variables come from the environment
only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Final, Literal, TypeAlias, cast, get_args

from recommender.errors import SettingsError

Signal: TypeAlias = Literal["traces", "metrics", "logs"]
Protocol: TypeAlias = Literal["grpc", "http/protobuf"]
ExemplarFilter: TypeAlias = Literal["always_on", "always_off", "trace_based"]

_SIGNALS: Final[tuple[Signal, ...]] = get_args(Signal)
_SAMPLERS: Final = ("always_on", "always_off", "traceidratio")
_SAMPLER_NAMES: Final = (*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS))
_QUEUE: Final = ("MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "SCHEDULE_DELAY", "EXPORT_TIMEOUT")
_LOG_LEVELS: Final = ("debug", "info", "warn", "warning", "error", "critical", "fatal")
_NOT_FOLLOWED: Final = {
    "OTEL_CONFIG_FILE": "set the OTEL_ variables instead",
    "OTEL_EXPERIMENTAL_CONFIG_FILE": "set the OTEL_ variables instead",
    "OTEL_EXPORTER_PROMETHEUS_HOST": "Prometheus scrapes RECOMMENDER_HOST",
    "OTEL_EXPORTER_PROMETHEUS_PORT": "set RECOMMENDER_METRICS_PORT",
    "OTEL_EXPORTER_ZIPKIN_ENDPOINT": "send over OTLP",
    "OTEL_EXPORTER_ZIPKIN_TIMEOUT": "send over OTLP",
}

Rule: TypeAlias = Callable[[str, str], None]
"""Checks a variable's key and text. Raises SettingsError."""


@dataclass(frozen=True, slots=True)
class Otlp:
    """The protocol of each OTLP signal by the standard variables; None if a signal is not sent."""

    traces: Protocol | None = None
    metrics: Protocol | None = None
    logs: Protocol | None = None
    interval: float = 60.0
    """Seconds between two sendings of metrics."""
    ratio: float = 1.0
    """Sampled share of the calls without a caller's trace."""
    exemplars: ExemplarFilter = "trace_based"
    """Calls that may be the exemplar of a histogram's bucket."""
    worker: int | None = None
    """Which of several servers this is; it is part of `service.instance.id`."""

    @classmethod
    def load(cls, worker: int | None = None) -> Otlp:
        """Read the environment. Raises SettingsError on a value that cannot be followed, if anything is sent.

        Removes empty variables: the standard has them mean unset, but the SDK takes some for values.
        """
        for key in [key for key in os.environ if key.startswith("OTEL_") and not _text(key)]:
            del os.environ[key]
        if _text("OTEL_SDK_DISABLED").lower() == "true":
            return cls(worker=worker)
        sent = {signal: _protocol(signal) for signal in _SIGNALS if _is_sent(signal)}
        filters = get_args(ExemplarFilter)
        exemplars = _text("OTEL_METRICS_EXEMPLAR_FILTER").lower() or "trace_based"
        if not sent:
            # Exemplars are in a scrape too.
            return cls(exemplars=cast(ExemplarFilter, exemplars if exemplars in filters else "trace_based"))
        for signal, protocol in sent.items():
            _check(signal, protocol)
        return cls(
            **sent,
            interval=float(_text("OTEL_METRIC_EXPORT_INTERVAL") or 60_000) / 1e3 if "metrics" in sent else 60.0,
            ratio=_ratio() if "traces" in sent else 1.0,
            exemplars=cast(ExemplarFilter, exemplars),
            worker=worker,
        )


def in_force(signal: Signal, name: str) -> str:
    """The text of OTEL_EXPORTER_OTLP_<signal>_<name>, or of the variable for all signals; empty if neither is set."""
    return _text(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}") or _text(f"OTEL_EXPORTER_OTLP_{name}")


def sdk_log_level() -> str:
    """Level from which on the SDK's own log is passed on, by OTEL_LOG_LEVEL."""
    return _text("OTEL_LOG_LEVEL").upper() or "WARNING"


def _text(key: str) -> str:
    return os.environ.get(key, "").strip()


def _is_sent(signal: Signal) -> bool:
    """True if the exporter is `otlp`, or an endpoint is set and no exporter; logs need a separate endpoint."""
    key = f"OTEL_{signal.upper()}_EXPORTER"
    _among(("otlp", "none"), key, _text(key))
    if _text(key):
        return _text(key) == "otlp"
    endpoint = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    return bool(_text(endpoint) if signal == "logs" else in_force(signal, "ENDPOINT"))


def _protocol(signal: Signal) -> Protocol:
    for key in _forms(signal, "PROTOCOL"):
        _among(get_args(Protocol), key, _text(key))
    return cast(Protocol, in_force(signal, "PROTOCOL") or "grpc")


def _ratio() -> float:
    sampler = _text("OTEL_TRACES_SAMPLER").removeprefix("parentbased_")
    if sampler == "traceidratio":
        return float(_text("OTEL_TRACES_SAMPLER_ARG") or 1)
    return 0.0 if sampler == "always_off" else 1.0


def _forms(signal: Signal, name: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_{name}", f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"


def _check(signal: Signal, protocol: Protocol) -> None:
    """Check every variable that has a say in how the signal is sent. Raises SettingsError."""
    for key, advice in _NOT_FOLLOWED.items():
        if _text(key):
            raise SettingsError(f"{key}={_text(key)!r} is not followed here: {advice}")
    for key, rule in (*_of_exporter(signal, protocol), *_OF_ALL, *_OF_SIGNAL[signal]):
        text = _text(key)
        if text:
            rule(key, text)
    prefix = {"traces": "OTEL_BSP", "logs": "OTEL_BLRP"}.get(signal)
    if prefix is not None:
        batch, queue = f"{prefix}_MAX_EXPORT_BATCH_SIZE", f"{prefix}_MAX_QUEUE_SIZE"
        if int(_text(batch) or 512) > int(_text(queue) or 2048):
            raise SettingsError(f"{batch}={_text(batch) or 512} is more than {queue}={_text(queue) or 2048}")


def _of_exporter(signal: Signal, protocol: Protocol) -> Iterator[tuple[str, Rule]]:
    compressions = ("none", "gzip") if protocol == "grpc" else ("none", "gzip", "deflate")
    for key in _forms(signal, "COMPRESSION"):
        yield key, partial(_among, compressions)
    for key in _forms(signal, "TIMEOUT"):
        yield key, partial(_more_than_0, "seconds")
    for key in _forms(signal, "HEADERS"):
        yield key, _pairs
    for key in _forms(signal, "INSECURE"):
        yield key, partial(_among, ("true", "false"))
    for key in _forms(signal, "ENDPOINT"):
        yield key, partial(_endpoint, protocol)
    for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
        for key in _forms(signal, name):
            yield key, _readable


def _among(known: tuple[str, ...], key: str, text: str) -> None:
    if text and text.lower() not in known:
        raise SettingsError(f"{key}={text!r} cannot be used here: it may be {', '.join(known)}")


def _more_than_0(unit: str, key: str, text: str) -> None:
    try:
        number = float(text)
    except ValueError:
        raise SettingsError(f"{key}={text!r} is not a number of {unit}") from None
    if not (math.isfinite(number) and number > 0):
        raise SettingsError(f"{key}={text!r} is not a number of {unit} above 0")


def _share(key: str, text: str) -> None:
    try:
        share = float(text)
    except ValueError:
        raise SettingsError(f"{key}={text!r} is not a number") from None
    if not 0 <= share <= 1:
        raise SettingsError(f"{key}={text!r} is not between 0 and 1")


def _whole(least: int, key: str, text: str) -> None:
    try:
        number = int(text)
    except ValueError:
        raise SettingsError(f"{key}={text!r} is not a whole number") from None
    if number < least:
        raise SettingsError(f"{key}={text!r} is less than {least}")


def _limit(key: str, text: str) -> None:
    if text.lower() != "unset":
        _whole(0, key, text)


def _pairs(key: str, text: str) -> None:
    for pair in text.split(","):
        if pair.strip() and not pair.partition("=")[1]:
            raise SettingsError(f"{key} has {pair.strip().split(' ')[0][:8]!r}…, which is not key=value")


def _endpoint(protocol: Protocol, key: str, text: str) -> None:
    scheme, found, rest = text.partition("://")
    if found and (scheme not in {"http", "https"} or not rest):
        raise SettingsError(f"{key}={text!r} is not a URL that begins with http:// or https://")
    if not found and protocol == "http/protobuf":
        raise SettingsError(f"{key}={text!r} must begin with http:// or https:// for http/protobuf")


def _readable(key: str, text: str) -> None:
    try:
        with open(text, "rb"):  # noqa: PTH123 (the SDK opens it the same way)
            pass
    except OSError as error:
        raise SettingsError(f"{key}={text!r} cannot be read: {error.strerror}") from None


def _installed(group: str, also: str, key: str, text: str) -> None:
    known = {point.name for point in entry_points(group=group)} | {also}
    for name in (each.strip() for each in text.split(",")):
        if name and name not in known:
            raise SettingsError(f"{key} names {name!r}, which is not installed: it may be {', '.join(sorted(known))}")


_OF_ALL: Final[tuple[tuple[str, Rule], ...]] = (
    ("OTEL_RESOURCE_ATTRIBUTES", _pairs),
    ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", partial(_installed, "opentelemetry_resource_detector", "*")),
    ("OTEL_LOG_LEVEL", partial(_among, _LOG_LEVELS)),
    ("OTEL_METRICS_EXEMPLAR_FILTER", partial(_among, get_args(ExemplarFilter))),
    ("OTEL_ATTRIBUTE_COUNT_LIMIT", _limit),
    ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", _limit),
)
_OF_SIGNAL: Final[dict[Signal, tuple[tuple[str, Rule], ...]]] = {
    "traces": (
        ("OTEL_TRACES_SAMPLER", partial(_among, _SAMPLER_NAMES)),
        ("OTEL_TRACES_SAMPLER_ARG", _share),
        ("OTEL_PROPAGATORS", partial(_installed, "opentelemetry_propagator", "none")),
        *((f"OTEL_BSP_{name}", partial(_whole, 1)) for name in _QUEUE),
        *(
            (f"OTEL_{name}_LIMIT", _limit)
            for name in (
                "SPAN_ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH", "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT",
                "EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT",
            )
        ),
    ),
    "metrics": (
        ("OTEL_METRIC_EXPORT_INTERVAL", partial(_more_than_0, "milliseconds")),
        ("OTEL_METRIC_EXPORT_TIMEOUT", partial(_more_than_0, "milliseconds")),
        (
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            partial(_among, ("cumulative", "delta", "lowmemory")),
        ),
        (
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            partial(_among, ("explicit_bucket_histogram", "base2_exponential_bucket_histogram")),
        ),
    ),
    "logs": (
        *((f"OTEL_BLRP_{name}", partial(_whole, 1)) for name in _QUEUE),
        *((f"OTEL_LOGRECORD_{name}_LIMIT", _limit) for name in ("ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH")),
    ),
}  # fmt: skip
