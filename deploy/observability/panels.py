"""Contents of the Grafana dashboards: rows, panels, queries, thresholds and annotations.

`$job` and `$instance` narrow every query;
`$__rate_interval` is Grafana's, a few scrapes long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HERE = 'job=~"$job",instance=~"$instance"'
JOB = '{job=~"$job"}'
WINDOW = "[$__rate_interval]"
SECONDS, SHARE, PER_SECOND, SHORT, BYTES = "s", "percentunit", "reqps", "short", "bytes"
DAY = 86_400


@dataclass(frozen=True)
class Panel:
    """One panel: queries with their legends, drawn as lines, a stack of areas, a heatmap, a number or names.

    `levels` are thresholds, rising, each with the colour from there on; `below` is the colour under the first.
    """

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = SHORT
    kind: str = "lines"
    width: int = 8
    most: float | None = None
    levels: Sequence[tuple[float, str]] = ()
    below: str = "transparent"


@dataclass(frozen=True)
class Annotation:
    """A moment that all panels mark: when `query` has a value, titled `title`."""

    name: str
    title: str
    query: str
    colour: str


def rate(metric: str, *labels: str) -> str:
    """The rate of a counter."""
    return f"rate({metric}{{{','.join((HERE, *labels))}}}{WINDOW})"


def total(metric: str, *labels: str, by: str = "") -> str:
    """The rate of a counter over all servers, by some labels."""
    return f"sum{f' by ({by})' if by else ''} ({rate(metric, *labels)})"


def quantile(q: float, metric: str, *labels: str, by: str = "") -> str:
    """A quantile over all servers, by some labels."""
    return f"histogram_quantile({q}, {total(f'{metric}_bucket', *labels, by=f'{by}, le' if by else 'le')})"


def quantiles(metric: str, *labels: str) -> list[tuple[str, str]]:
    """Median, 95th and 99th percentile."""
    return [(quantile(q, metric, *labels), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


def mean(metric: str, *labels: str) -> str:
    """The mean of a histogram over all servers."""
    return f"{total(f'{metric}_sum', *labels)} / {total(f'{metric}_count', *labels)}"


def _used(kind: str) -> str:
    """The share of a limit of the catalogue that is in use."""
    most = f"max by (instance) (recommender_catalogue_{kind}_limit{{{HERE}}})"
    return f"max by (instance) (recommender_catalogue_{kind}{{{HERE}}}) / {most}"


CALLS = "rpc_server_call_duration_seconds"
OK = 'rpc_response_status_code="OK"'
RECOMMEND = 'rpc_method=~".*/Recommend"'
QUEUE, RUN, ROWS = "recommender_queue_time_seconds", "recommender_inference_time_seconds", "recommender_batch_size"
REQUESTS = "recommender_requests_total"
ANSWERED = 'recommender_outcome="answered"'
FAILED = 'recommender_outcome="failed"'
FALLBACKS = total("recommender_fallbacks_total")
MODEL, LEGEND = "recommender_model", "{{recommender_model}}"
ONE = "{{instance}} {{worker}} {{recommender_model}}"
"""One model of one server, or of one of its workers."""

BURN_LEVELS = ((1.0, "yellow"), (6.0, "orange"), (14.4, "red"))
BUDGET_LEVELS = ((0.0, "orange"), (0.25, "green"))

SERVICE = {
    "Error budget": (
        Panel(
            "Availability budget left", "Share of 30 days' allowed failures. Below zero the objective is missed.",
            [(f"recommender:availability_budget_left:ratio30d{JOB}", "{{job}}")], SHARE, "number", 4,
            levels=BUDGET_LEVELS, below="red",
        ),
        Panel(
            "Latency budget left", "Share of 30 days' allowed slow calls.",
            [(f"recommender:latency_budget_left:ratio30d{JOB}", "{{job}}")], SHARE, "number", 4,
            levels=BUDGET_LEVELS, below="red",
        ),
        Panel(
            "Availability burn rate",
            "Rate of calls that fail by the server's fault, as a multiple of the allowed rate. At 1 the budget lasts "
            "30 days. Alerts page at 6 and 14.4.",
            [(f"recommender:calls_failed:burn_rate5m{JOB}", "{{job}}, 5 minutes"),
             (f"recommender:calls_failed:burn_rate1h{JOB}", "{{job}}, 1 hour")], levels=BURN_LEVELS,
        ),
        Panel(
            "Latency burn rate", "The same for answered Recommend calls over 50 ms.",
            [(f"recommender:calls_slow:burn_rate5m{JOB}", "{{job}}, 5 minutes"),
             (f"recommender:calls_slow:burn_rate1h{JOB}", "{{job}}, 1 hour")], levels=BURN_LEVELS,
        ),
    ),
    "Traffic": (
        Panel(
            "Calls", "Calls per second by method.", [(total(f"{CALLS}_count", by="rpc_method"), "{{rpc_method}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Calls by status", "Answered and failed calls. INVALID_ARGUMENT is the caller's fault.",
            [(total(f"{CALLS}_count", by="rpc_response_status_code"), "{{rpc_response_status_code}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Requests by outcome", "A batch call counts each of its requests.",
            [(total(REQUESTS, by="recommender_outcome"), "{{recommender_outcome}}")], PER_SECOND, "stack",
        ),
    ),
    "Latency": (
        Panel(
            "Recommend, answered", "From arrival to status. The objective is 99 % below 50 ms.",
            quantiles(CALLS, RECOMMEND, OK), SECONDS, levels=((0.05, "red"),),
        ),
        Panel("Waiting for a slot", "From admission to the start of the batch.", quantiles(QUEUE), SECONDS),
        Panel("Running", "One run of the engine.", quantiles(RUN), SECONDS),
        Panel(
            "Parts of a call",
            "Means, stacked: waiting, running, and the rest, which is the wire, checks and the fan-out.",
            [
                (mean(QUEUE), "waiting"),
                (mean(RUN), "running"),
                (f"clamp_min({mean(CALLS, RECOMMEND, OK)} - {mean(QUEUE)} - {mean(RUN)}, 0)", "the rest"),
            ], SECONDS, "stack", 12,
        ),
        Panel(
            "Recommend, all calls", "Number of calls by duration.",
            [(total(f"{CALLS}_bucket", RECOMMEND, by="le"), "{{le}}")], SECONDS, "heatmap", 12,
        ),
    ),
    "Overload": (
        Panel(
            "Backlog", "Waiting requests, as a share of the limit. At 100 % the server refuses.",
            [(f"recommender:backlog:ratio{{{HERE}}}", ONE)], SHARE, most=1, levels=((0.8, "red"),),
        ),
        Panel(
            "Refused and expired",
            "Refused on admission, because the backlog is full or the deadline is too short; expired while waiting.",
            [(total(REQUESTS, 'recommender_outcome=~"refused_.*|expired"', by="recommender_outcome"),
              "{{recommender_outcome}}")], PER_SECOND, "stack",
        ),
        Panel(
            "Engine busy",
            "Share of the time that the engine's slots run. Near 100 % the engine is the limit.",
            [(f"recommender:engine_busy:ratio_rate1m{{{HERE}}}", ONE)],
            SHARE, most=1, levels=((0.9, "orange"),),
        ),
        Panel(
            "Waiting and running", "Requests now.",
            [
                (f"sum(recommender_backlog_length{{{HERE}}})", "waiting"),
                (f"sum(recommender_running{{{HERE}}})", "running"),
            ],
        ),
        Panel(
            "Cancelled", "Callers that left before their answer, often at a deadline of their own.",
            [(total(REQUESTS, 'recommender_outcome="cancelled"'), "cancelled")], PER_SECOND,
        ),
        Panel(
            "Event loop lag", "p99. Lag means that something blocks the loop, or that CPU is short.",
            [(quantile(0.99, "recommender_event_loop_lag_seconds"), "p99")], SECONDS, levels=((0.1, "red"),),
        ),
    ),
    "Callers": (
        Panel(
            "Requests by token", "Accepted, by the name of the token.",
            [(total("recommender_token_requests_total", 'recommender_outcome="accepted"', by="recommender_token"),
              "{{recommender_token}}")], PER_SECOND, "stack",
        ),
        Panel(
            "Refused by a token's limit", "The token has used up its rate, or has too many calls open.",
            [(total("recommender_token_requests_total", 'recommender_outcome=~"refused_.*"',
                    by="recommender_token, recommender_outcome"), "{{recommender_token}} {{recommender_outcome}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Calls without a valid token", "Many unknown ones after a rotation: a caller has the old token.",
            [(total("recommender_callers_turned_away_total", by="recommender_reason"), "{{recommender_reason}}")],
            PER_SECOND, "stack",
        ),
    ),
    "Connections (Envoy's edge only)": (
        Panel(
            "Open connections", "Connections of callers.",
            [(f"recommender_connections_open{{{HERE}}}", "{{instance}}")],
        ),
        Panel(
            "New connections", "A high rate means that callers open a channel for each call.",
            [(total("recommender_connections_opened_total"), "opened")], PER_SECOND,
        ),
        Panel(
            "Lost connections and calls",
            "Connections that ended with calls open on them, and calls that ended without an answer.",
            [(total("recommender_connections_cut_total", by="recommender_side"), "cut by {{recommender_side}}"),
             (total("recommender_calls_reset_total", by="recommender_side"), "calls reset by {{recommender_side}}")],
            PER_SECOND,
        ),
    ),
}  # fmt: skip

ENGINE = {
    "Batching": (
        Panel(
            "Rows per run", "Grows with the number of waiting requests.",
            [(f"recommender:batch_rows:mean_rate1m{{{HERE}}}", ONE)],
        ),
        Panel(
            "Batch sizes", "Number of runs by rows.",
            [(total(f"{ROWS}_bucket", by="le"), "{{le}}")], SHORT, "heatmap",
        ),
        Panel(
            "Why batches close",
            "full: larger batches might help. drained: no other request was waiting. "
            "alike: other histories have another length.",
            [(total("recommender_batches_total", by="recommender_batch_close_reason"),
              "{{recommender_batch_close_reason}}")], PER_SECOND, "stack",
        ),
        Panel(
            "Runs", "Engine runs per second.", [(total(f"{RUN}_count"), "runs")], PER_SECOND,
        ),
        Panel(
            "Inference time per row", "Mean time of a run by its rows. Falls as batches grow, until cores are busy.",
            [(f"{total(f'{RUN}_sum')} / {total(f'{ROWS}_sum')}", "per row")], SECONDS,
        ),
        Panel(
            "Padding per row", "Cells without an item: the cost of unequal histories.",
            [(f"{total('recommender_cells_padded_total')} / {total(f'{ROWS}_sum')}", "cells")],
        ),
        Panel(
            "Halved batches", "Failed batches that were halved to find the row at fault.",
            [(total("recommender_batch_splits_total"), "halved")],
        ),
        Panel(
            "Failed in the engine", "The log has the reason and the request_id.",
            [(total(REQUESTS, FAILED, by=MODEL), LEGEND)], PER_SECOND,
        ),
        Panel(
            "Answered from the fallback list", "Share of all answers: requests of unknown users.",
            [(f"{FALLBACKS} / ({FALLBACKS} + {total(REQUESTS, ANSWERED)})", "share")], SHARE,
        ),
    ),
    "Models": (
        Panel(
            "Version", "The version of each server, and its execution provider.",
            [(
                f"recommender_model_info{{{HERE}}}",
                "{{instance}} {{worker}} {{recommender_model}} {{recommender_execution_provider}}",
            )], kind="names", width=24,
        ),
        Panel(
            "Reloads", "Attempts to load a version in ten minutes, by outcome.",
            [(f"sum by (recommender_outcome) (increase(recommender_model_reloads_total{{{HERE}}}[10m]))",
              "{{recommender_outcome}}")], SHORT, "stack",
        ),
        Panel(
            "Versions refused", "1 while the wanted version may not serve. The log says why.",
            [(f"recommender_model_refused{{{HERE}}}", "{{instance}} {{worker}} {{recommender_model_reference}}")],
            levels=((1.0, "red"),),
        ),
        Panel(
            "Unreachable sources", "1 while the server cannot look for new versions.",
            [(f"recommender_model_source_failing{{{HERE}}}",
              "{{instance}} {{worker}} {{recommender_model_reference}}")],
            levels=((1.0, "red"),),
        ),
    ),
    "Candidate and live version": (
        Panel(
            "Answered", "By version. A candidate's share is set by RECOMMENDER_CANDIDATE_SHARE_PERCENT.",
            [(total(REQUESTS, ANSWERED, by=MODEL), LEGEND)], PER_SECOND, "stack", 6,
        ),
        Panel(
            "Failed", "Share of each version's requests. A candidate that fails more is rolled back.",
            [(f"{total(REQUESTS, FAILED, by=MODEL)} / ({total(REQUESTS, by=MODEL)} > 0)", LEGEND)], SHARE, width=6,
        ),
        Panel("Waiting, p99", "By version.", [(quantile(0.99, QUEUE, by=MODEL), LEGEND)], SECONDS, width=6),
        Panel("Running, p99", "By version.", [(quantile(0.99, RUN, by=MODEL), LEGEND)], SECONDS, width=6),
    ),
    "Workers (several processes only)": (
        Panel(
            "Up", "0 while a worker does not answer its supervisor.",
            [(f"recommender_worker_up{{{HERE}}}", "{{instance}} {{worker}}")],
        ),
        Panel(
            "Requests by worker",
            "Answered requests. Uneven if callers have few connections, which the kernel distributes.",
            [(total(REQUESTS, ANSWERED, 'worker!=""', by="instance, worker"), "{{instance}} {{worker}}")], PER_SECOND,
        ),
        Panel(
            "Restarts", "Deaths of each worker in ten minutes.",
            [(f'resets(process_uptime_seconds{{{HERE},worker!=""}}[10m])', "{{instance}} {{worker}}")],
            levels=((1.0, "red"),),
        ),
    ),
    "Catalogue": (
        Panel(
            "Use of the catalogue's limits", "Items hidden and added by calls. At 100 % further ones are refused.",
            [(_used("hidden"), "{{instance}} hidden"), (_used("new"), "{{instance}} added")],
            SHARE, levels=((0.8, "red"),),
        ),
        Panel(
            "Filters", "Cached filters are ready. Others are evaluated over all items.",
            [(f"sum by (recommender_outcome) ({rate('recommender_filters_total')})", "{{recommender_outcome}}")],
            PER_SECOND,
        ),
    ),
    "Process": (
        Panel(
            "CPU, cores", "User and system time.",
            [(f"sum by (instance) ({rate('process_cpu_time_seconds_total')})", "{{instance}}")],
        ),
        Panel(
            "Memory", "Resident.",
            [(f"sum by (instance) (process_memory_usage_bytes{{{HERE}}})", "{{instance}}")], BYTES,
        ),
        Panel(
            "Uptime", "Age of each process.",
            [(f"process_uptime_seconds{{{HERE}}}", "{{instance}} {{worker}}")], SECONDS,
        ),
        Panel(
            "Certificates expire in", "Below two weeks, renewal has failed.",
            [(f"recommender_certificate_expiry_seconds{{{HERE}}} - time()",
              "{{instance}} {{worker}} {{recommender_file_path}}")],
            SECONDS, width=12, levels=((0, "red"), (2 * DAY, "orange"), (14 * DAY, "transparent")), below="red",
        ),
        Panel(
            "Files not reloaded",
            "1 while changed certificates or tokens cannot be loaded: the previous ones stay in use.",
            [(f"recommender_files_stale{{{HERE}}}", "{{instance}} {{worker}} {{recommender_file_kind}}")],
            width=12, levels=((1.0, "red"),),
        ),
    ),
}  # fmt: skip

_INFO = f"count by (job, {MODEL}) (recommender_model_info{{{HERE}}}"
ANNOTATIONS = (
    Annotation("Version served", f"{LEGEND} serves", f"{_INFO}) unless {_INFO} offset 1m)", "blue"),
    Annotation(
        "Version refused or rolled back",
        "{{recommender_model_reference}}: {{recommender_outcome}}",
        f'increase(recommender_model_reloads_total{{{HERE},recommender_outcome=~"refused|rolled_back"}}[1m]) > 0',
        "red",
    ),
)
"""On every dashboard."""

DASHBOARDS = {"service": ("Recommender: service", SERVICE), "engine": ("Recommender: engine", ENGINE)}
