"""Contents of the Grafana dashboards: rows, panels, queries, thresholds and annotations.

Each panel says in its description what one learns from it. `$job` and `$instance` narrow every query;
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
    """How fast a counter grows."""
    return f"rate({metric}{{{','.join((HERE, *labels))}}}{WINDOW})"


def total(metric: str, *labels: str, by: str = "") -> str:
    """The same over all servers, by some labels."""
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
            "Availability budget left", "Of the failures that 30 days may have. Below zero the objective is missed.",
            [(f"recommender:availability_budget_left:ratio30d{JOB}", "{{job}}")], SHARE, "number", 4,
            levels=BUDGET_LEVELS, below="red",
        ),
        Panel(
            "Latency budget left", "Of the slow calls that 30 days may have.",
            [(f"recommender:latency_budget_left:ratio30d{JOB}", "{{job}}")], SHARE, "number", 4,
            levels=BUDGET_LEVELS, below="red",
        ),
        Panel(
            "Availability burn rate",
            "How many times faster than the objective allows calls fail by our fault. At 1 the budget lasts 30 days; "
            "alerts page at 6 and 14.4.",
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
            "Calls", "Calls a second by method.", [(total(f"{CALLS}_count", by="rpc_method"), "{{rpc_method}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Calls by status", "OK apart from what failed, and by whose fault: INVALID_ARGUMENT is the caller's.",
            [(total(f"{CALLS}_count", by="rpc_response_status_code"), "{{rpc_response_status_code}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Requests by outcome", "A call of many counts each of its requests.",
            [(total(REQUESTS, by="recommender_outcome"), "{{recommender_outcome}}")], PER_SECOND, "stack",
        ),
    ),
    "Latency": (
        Panel(
            "Recommend, answered", "From arrival to status. 99 % are to be below 50 ms.",
            quantiles(CALLS, RECOMMEND, OK), SECONDS, levels=((0.05, "red"),),
        ),
        Panel("Waiting for a slot", "From admission to the start of the batch.", quantiles(QUEUE), SECONDS),
        Panel("Running", "One run of the engine.", quantiles(RUN), SECONDS),
        Panel(
            "Where the time of a call goes",
            "Means, stacked: waiting, running, and the rest, which is the wire, checks and the fan-out.",
            [
                (mean(QUEUE), "waiting"),
                (mean(RUN), "running"),
                (f"clamp_min({mean(CALLS, RECOMMEND, OK)} - {mean(QUEUE)} - {mean(RUN)}, 0)", "the rest"),
            ], SECONDS, "stack", 12,
        ),
        Panel(
            "Recommend, all of it", "How many calls took how long.",
            [(total(f"{CALLS}_bucket", RECOMMEND, by="le"), "{{le}}")], SECONDS, "heatmap", 12,
        ),
    ),
    "Overload": (
        Panel(
            "Backlog", "Requests that wait, of the number that may. At 100 % the server refuses.",
            [(f"recommender:backlog:ratio{{{HERE}}}", ONE)], SHARE, most=1, levels=((0.8, "red"),),
        ),
        Panel(
            "Refused and expired",
            "At the door because the backlog is full or the deadline hopeless; expired while waiting.",
            [(total(REQUESTS, 'recommender_outcome=~"refused_.*|expired"', by="recommender_outcome"),
              "{{recommender_outcome}}")], PER_SECOND, "stack",
        ),
        Panel(
            "Engine busy",
            "Share of the time that the engine's slots run: near 100 % there is no more to have from batching.",
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
            "Cancelled", "Callers who left before their answer: their own deadlines are shorter than ours.",
            [(total(REQUESTS, 'recommender_outcome="cancelled"'), "cancelled")], PER_SECOND,
        ),
        Panel(
            "Event loop late", "By how much, p99. Late means that something blocks it, or that CPUs are missing.",
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
            "Over their limits", "Refused because a token has used up its rate, or has too many calls open.",
            [(total("recommender_token_requests_total", 'recommender_outcome=~"refused_.*"',
                    by="recommender_token, recommender_outcome"), "{{recommender_token}} {{recommender_outcome}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Turned away", "Calls without a good token. Many unknown ones after a rotation: a caller has the old one.",
            [(total("recommender_callers_turned_away_total", by="recommender_reason"), "{{recommender_reason}}")],
            PER_SECOND, "stack",
        ),
    ),
    "Connections (Envoy's edge only)": (
        Panel(
            "Open", "Connections of callers.", [(f"recommender_connections_open{{{HERE}}}", "{{instance}}")],
        ),
        Panel(
            "Opened", "New connections a second. Many: callers make a channel for each call.",
            [(total("recommender_connections_opened_total"), "opened")], PER_SECOND,
        ),
        Panel(
            "Lost", "Connections that ended with calls open on them, and calls that ended without an answer.",
            [(total("recommender_connections_cut_total", by="recommender_side"), "cut by {{recommender_side}}"),
             (total("recommender_calls_reset_total", by="recommender_side"), "calls reset by {{recommender_side}}")],
            PER_SECOND,
        ),
    ),
}  # fmt: skip

ENGINE = {
    "Batching": (
        Panel(
            "Rows a run", "Many, where many wait: that is what batching is for.",
            [(f"recommender:batch_rows:mean_rate1m{{{HERE}}}", ONE)],
        ),
        Panel(
            "Sizes of batches", "How many runs had how many rows.",
            [(total(f"{ROWS}_bucket", by="le"), "{{le}}")], SHORT, "heatmap",
        ),
        Panel(
            "Why batches close",
            "full: larger ones might pay off. drained: nobody else was waiting. "
            "alike: the others' histories are of another length.",
            [(total("recommender_batches_total", by="recommender_batch_close_reason"),
              "{{recommender_batch_close_reason}}")], SHORT, "stack",
        ),
        Panel(
            "Runs", "Engine runs a second.", [(total(f"{RUN}_count"), "runs")],
        ),
        Panel(
            "Inference a row", "Mean time of a run over its rows: falls as batches grow, until the cores are busy.",
            [(f"{total(f'{RUN}_sum')} / {total(f'{ROWS}_sum')}", "a row")], SECONDS,
        ),
        Panel(
            "Padding a row", "Cells without an item, for each row: what unequal histories cost.",
            [(f"{total('recommender_cells_padded_total')} / {total(f'{ROWS}_sum')}", "cells")],
        ),
        Panel(
            "Batches halved", "Batches that failed, and were halved to find the row at fault.",
            [(total("recommender_batch_splits_total"), "halved")],
        ),
        Panel(
            "Failed by the engine", "The log has the reason and the request_id.",
            [(total(REQUESTS, FAILED, by=MODEL), LEGEND)], PER_SECOND,
        ),
        Panel(
            "Answered from the fallback list", "Of all that was answered: users of whom nothing is known.",
            [(f"{FALLBACKS} / ({FALLBACKS} + {total(REQUESTS, ANSWERED)})", "share")], SHARE,
        ),
    ),
    "Models": (
        Panel(
            "Version", "Which server serves what, on which execution provider.",
            [(
                f"recommender_model_info{{{HERE}}}",
                "{{instance}} {{worker}} {{recommender_model}} {{recommender_execution_provider}}",
            )], kind="names", width=24,
        ),
        Panel(
            "Reloads", "Attempts to bring a version in, by what came of them, in ten minutes.",
            [(f"sum by (recommender_outcome) (increase(recommender_model_reloads_total{{{HERE}}}[10m]))",
              "{{recommender_outcome}}")], SHORT, "stack",
        ),
        Panel(
            "Versions refused", "1 as long as a version is wanted that may not serve: the log says why.",
            [(f"recommender_model_refused{{{HERE}}}", "{{instance}} {{worker}} {{recommender_model_reference}}")],
            levels=((1.0, "red"),),
        ),
        Panel(
            "Sources that cannot be asked", "1 while new versions cannot be looked for.",
            [(f"recommender_model_source_failing{{{HERE}}}",
              "{{instance}} {{worker}} {{recommender_model_reference}}")],
            levels=((1.0, "red"),),
        ),
    ),
    "Candidate beside the live version": (
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
            "Requests by worker", "Answered. Uneven where callers have few connections: the kernel shares those out.",
            [(total(REQUESTS, ANSWERED, 'worker!=""', by="instance, worker"), "{{instance}} {{worker}}")], PER_SECOND,
        ),
        Panel(
            "Restarts", "How often each worker has died in ten minutes.",
            [(f'resets(process_uptime_seconds{{{HERE},worker!=""}}[10m])', "{{instance}} {{worker}}")],
            levels=((1.0, "red"),),
        ),
    ),
    "Catalogue": (
        Panel(
            "Items hidden and added by calls", "Beyond the limits calls are refused.",
            [(f"max by (instance) (recommender_catalogue_hidden{{{HERE}}})", "{{instance}} hidden"),
             (f"max by (instance) (recommender_catalogue_hidden_limit{{{HERE}}})", "{{instance}} hidden, limit"),
             (f"max by (instance) (recommender_catalogue_new{{{HERE}}})", "{{instance}} added"),
             (f"max by (instance) (recommender_catalogue_new_limit{{{HERE}}})", "{{instance}} added, limit")],
        ),
        Panel(
            "Filters", "Those in the cache are ready; the others are evaluated over all items.",
            [(f"sum by (recommender_outcome) ({rate('recommender_filters_total')})", "{{recommender_outcome}}")],
        ),
    ),
    "Process": (
        Panel(
            "CPU", "Cores in use, user and system.",
            [(f"sum by (instance) ({rate('process_cpu_time_seconds_total')})", "{{instance}}")],
        ),
        Panel(
            "Memory", "Resident.",
            [(f"sum by (instance) (process_memory_usage_bytes{{{HERE}}})", "{{instance}}")], BYTES,
        ),
        Panel(
            "Up since", "Age of each process.",
            [(f"process_uptime_seconds{{{HERE}}}", "{{instance}} {{worker}}")], SECONDS,
        ),
        Panel(
            "Certificates expire in", "Renewal has failed where this falls below two weeks.",
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
