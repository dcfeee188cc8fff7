"""The only reader of the environment: every setting with its unit, its reason and when to move it."""

from __future__ import annotations

import difflib
import io
import ipaddress
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from dotenv.parser import parse_stream
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from recommender.domain import ArenaStrategy, CandidateMode, CoreMLFormat, CoreMLUnits, Device, Edge, UnknownItems
from recommender.errors import SettingsError
from recommender.observability.log import LogFormat, LogLevel

PREFIX = "RECOMMENDER_"
ENV_FILES = (".env.dev", ".env")
"""Read from the working directory, the later over the earlier, the environment over both."""

_SAMPLERS = ("always_on", "always_off", "traceidratio")

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
_NOT_BEHIND_ENVOY = ("workers", "min_ping_interval_ms", "max_connection_age_grace_ms")
"""What Envoy would not hold is refused rather than passed over."""

_SERVICE_LINKS = (
    "Kubernetes sets such variables for a Service named `recommender`: set `enableServiceLinks: false` in the pod"
)

_TEMPLATE_WIDTH = 100
_PAGE = """\
# Settings

Written by `just docs` from `recommender/settings/settings.py`; a check fails when it is out of date.

Every setting is an environment variable, or a line in a `.env` file in the working directory. What
comes first in this list wins:

1. options of `recommender serve`
2. the environment
3. `.env`
4. `.env.dev`, for local development: `just env` makes it from `.env.template`
5. the default

An unknown `RECOMMENDER_` key, or a value that a setting cannot have, stops the start with a sentence
that says which. `recommender config` prints what is in force, secrets masked. Empty means: the default.

| key | default | what it does, and when to move it |
| --- | --- | --- |
{rows}
"""


class Settings(BaseModel):
    """What an operator can set; frozen, checked at the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[
        str,
        Field(
            min_length=1,
            description="Address to listen on. The default takes calls from this machine only; a container needs "
            "0.0.0.0, and then TLS or RECOMMENDER_PLAINTEXT=true.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535, description="TCP port to listen on. 0 takes a free one; the log says which."),
    ] = 50051
    edge: Annotated[
        Edge,
        Field(
            description="What takes the calls: grpc (grpc.aio) or envoy (Envoy's HTTP/2 in a process of its own with "
            "Python inside, half the CPU a call where the model is fast; needs recommender[envoy]).",
        ),
    ] = "grpc"
    web: Annotated[
        bool,
        Field(
            description="Whether calls may come as gRPC-Web and as JSON too, on the same port: for browsers, curl and "
            "other callers without gRPC, see docs/browsers.md. Only with RECOMMENDER_EDGE=envoy.",
        ),
    ] = False
    cors_origins: Annotated[
        str,
        Field(
            description="Origins whose pages may call from a browser, as `https://shop.example`, exactly as a browser "
            "says them, with commas between. Empty: none, other than the server's own. Needs RECOMMENDER_WEB=true.",
        ),
    ] = ""
    tls_certificate: Annotated[
        Path | None,
        Field(
            description="PEM file of the server's certificate and those between it and its authority. With it the port "
            "speaks TLS 1.2 and 1.3 only. Replaced files are taken up without a restart.",
        ),
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="PEM file of the certificate's private key, without password.")
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(
            description="PEM file of the authorities whose certificates callers must have (mutual TLS). Empty: callers "
            "need none.",
        ),
    ] = None
    plaintext: Annotated[
        bool,
        Field(
            description="Whether an address beyond this machine may be listened on without TLS. For networks where "
            "something else encrypts, such as a service mesh or a proxy beside it: tokens travel readable.",
        ),
    ] = False
    tokens_file: Annotated[
        Path | None,
        Field(
            description="TOML file of the tokens that are good, a table for each name; `recommender token` writes one. "
            "With it every call needs a token, health aside. Changes are taken up without a restart.",
        ),
    ] = None
    health_needs_token: Annotated[
        bool,
        Field(
            description="Whether health needs a token too, where others do. Few load balancers can bring one.",
        ),
    ] = False
    reflection: Annotated[
        bool,
        Field(
            description="Whether the service describes itself to grpcurl and the like (with a token, where others need "
            "one). Turn it off where strangers should not see the API.",
        ),
    ] = True
    secrets_reload_ms: Annotated[
        int,
        Field(
            ge=10,
            le=3_600_000,
            description="Milliseconds between looks at the files of certificates and tokens. A revoked token is good "
            "for so long; a look costs some microseconds.",
        ),
    ] = 10_000
    num_recommendations: Annotated[
        int,
        Field(
            ge=1,
            description="How many recommendations a caller gets who sets no `limit`; also picks the model file "
            "{K}_model.onnx in the weights folder.",
        ),
    ] = 10
    weights_dir: Annotated[Path, Field(description="Folder of the model files {K}_model.onnx.")] = Path("weights")
    model: Annotated[
        str | None,
        BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value),
        Field(
            description="What to serve instead of the file that the number picks: a model file; or a folder of "
            "versions, `<root>/<name>`, whose largest serves and is watched, `<root>/<name>@<version>` for one of "
            "them; or a model in the registry, `models:/<name>@<alias>`, which is watched, or "
            "`models:/<name>/<version>`. Several, with commas between them: the first answers who names no model. "
            "Empty: none.",
        ),
    ] = None
    registry_uri: Annotated[
        str,
        Field(
            description="Tracking URI of the MLflow registry that `models:/` names are looked up in, such as "
            "http://mlflow:5000. Credentials and time limits are MLflow's own variables (MLFLOW_TRACKING_USERNAME, "
            "MLFLOW_HTTP_REQUEST_TIMEOUT …). Empty: none.",
        ),
    ] = ""
    registry_timeout_ms: Annotated[
        int,
        Field(
            ge=100,
            le=3_600_000,
            description="Milliseconds that one look at where a model comes from may take. A registry that hangs is "
            "asked again later, and what serves goes on serving.",
        ),
    ] = 30_000
    model_cache_dir: Annotated[
        Path,
        Field(
            description="Folder that versions from a registry are kept in, by digest. A volume that outlives the "
            "process lets a server start while the registry is down; several processes may share it. The versions "
            "that serve and the three newest others stay.",
        ),
    ] = Path("~/.cache/recommender")
    candidate: Annotated[
        str | None,
        BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value),
        Field(
            description="A second version to try out beside the first model, named as in RECOMMENDER_MODEL, such as "
            "`models:/<name>@challenger`. It is loaded once the server is ready, and needs as much memory. One that "
            "fails or dawdles is rolled back: the live version answers everybody. Empty: none.",
        ),
    ] = None
    candidate_mode: Annotated[
        CandidateMode,
        Field(
            description="canary: the candidate answers a share of the users, by a stable hash of `routing_key`, else "
            "of the request's id. shadow: it is sent copies of a share of the requests, and nobody gets its answers; "
            "copies are left out first under load.",
        ),
    ] = "canary"
    candidate_share_percent: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="Percent of users, or of mirrored requests, that the candidate sees. Begin small; a copy costs "
            "as much as a request.",
        ),
    ] = 5.0
    candidate_max_error_percent: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="Percent of the candidate's requests that may fail beyond what fails of the live version's "
            "before it is rolled back.",
        ),
    ] = 1.0
    candidate_max_latency_ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description="How many times the live version's 99th percentile the candidate's may be before it is rolled "
            "back. 0: as slow as it likes.",
        ),
    ] = 2.0
    candidate_least_requests: Annotated[
        int,
        Field(
            ge=1,
            le=2000,
            description="Requests of the candidate that must have ended before it is judged. A 99th percentile of "
            "fewer than a hundred is the slowest of all.",
        ),
    ] = 200
    model_poll_ms: Annotated[
        int,
        Field(
            ge=10,
            le=86_400_000,
            description="Milliseconds between two looks at where a model comes from, give or take a fifth. It is how "
            "long a promotion goes unnoticed; each look costs a listing of a folder or a call of a registry. While "
            "a registry is down the looks become rarer, a minute apart at most.",
        ),
    ] = 3_000
    longest_run_ms: Annotated[
        int,
        Field(
            ge=0,
            le=3_600_000,
            description="Milliseconds that a full batch of a version may take at its trial; a slower version is "
            "refused. 0: as long as RECOMMENDER_ENGINE_TIMEOUT_MS allows. Set it well above what a good version "
            "takes on a busy machine: the trial shares the CPUs with the requests.",
        ),
    ] = 0
    reload_timeout_ms: Annotated[
        int,
        Field(
            ge=100,
            le=86_400_000,
            description="Milliseconds that a download, and then the proof of a version in a process of its own, may "
            "take before the version is refused. Far above what the largest model needs while this server is busy: "
            "the proof runs at low priority.",
        ),
    ] = 600_000
    device: Annotated[
        Device,
        Field(
            description="Where the model runs: auto, cpu, cuda or coreml. A device that is named and not available "
            "stops the start; auto takes CUDA where it works, else the CPU, and says why.",
        ),
    ] = "auto"
    cuda_device_id: Annotated[
        int,
        Field(
            ge=0, le=1023, description="Number of the CUDA device, as nvidia-smi counts them among the visible ones."
        ),
    ] = 0
    cuda_memory_limit_mb: Annotated[
        int,
        Field(
            ge=0,
            le=10_000_000,
            description="MiB that the arena on the CUDA device may take. 0: what there is. Set it where several "
            "processes share the device; it needs room for the item table and one batch of scores.",
        ),
    ] = 0
    cuda_arena: Annotated[
        ArenaStrategy,
        Field(
            description="How the arena on the CUDA device grows: next_power_of_two takes more than it needs and grows "
            "seldom; same_as_requested takes what it needs, for devices that are shared or nearly full.",
        ),
    ] = "next_power_of_two"
    cuda_graph: Annotated[
        bool,
        Field(
            description="Whether runs on CUDA are captured once for each shape and replayed, which saves the launch of "
            "each kernel. Pays off where the catalogue is small. Models with branches or loops, such as those that "
            "take exclusions or candidates, cannot be captured; the log says so.",
        ),
    ] = False
    cuda_tf32: Annotated[
        bool,
        Field(
            description="Whether CUDA may round the inputs of products to 10 bits of mantissa. Faster on large "
            "catalogues, and near ties change places: golden answers may then stop the start.",
        ),
    ] = False
    coreml_compute_units: Annotated[
        CoreMLUnits,
        Field(
            description="What CoreML may use: all, cpu_and_gpu, cpu_and_neural_engine or cpu_only. The neural engine "
            "computes in half precision, which moves near ties.",
        ),
    ] = "cpu_and_gpu"
    coreml_model_format: Annotated[
        CoreMLFormat,
        Field(
            description="What CoreML compiles the graph to: mlprogram (macOS 12 or newer, more operators) or "
            "neuralnetwork.",
        ),
    ] = "mlprogram"
    threads: Annotated[
        int,
        Field(
            ge=0,
            le=1024,
            description="CPUs that one engine run uses. 0: all that this process may use (affinity and cgroup quota, "
            "rounded down), shared out among the engine slots, or one where the model is so quick that more bring "
            "nothing. Lower it where other processes need the cores; `recommender profile` measures what it costs.",
        ),
    ] = 0
    thread_spinning: Annotated[
        bool,
        Field(
            description="Whether idle engine threads spin. Spinning saves some microseconds a run on cores that "
            "nobody else needs and starves everybody on shared ones.",
        ),
    ] = False
    engine_slots: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Batches that run at once. More than 1 pays off only with many cores and a catalogue too "
            "small to keep them busy with one batch.",
        ),
    ] = 1
    max_batch_size: Annotated[
        int,
        Field(
            ge=1,
            le=4096,
            description="Rows of one batch at most. Larger batches raise throughput until the cores are busy, and the "
            "time that everybody in the batch waits.",
        ),
    ] = 64
    max_wait_ms: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="Milliseconds that a batch gathers callers while they keep coming. It starts at once where "
            "nobody else comes, so a caller by itself does not wait; on a busy server it makes batches larger and each "
            "call cheaper. 0: a batch starts with whoever is there when the engine comes free.",
        ),
    ] = 2.0
    max_backlog: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Requests that wait at most; one more is refused with RESOURCE_EXHAUSTED. The longest wait is "
            "about this number divided by the throughput.",
        ),
    ] = 1024
    max_history: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="Items of one history at most; a longer one is refused with INVALID_ARGUMENT. It bounds what "
            "one caller can cost everybody in its batch.",
        ),
    ] = 4096
    max_excluded: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Excluded items of one request at most; more are refused with INVALID_ARGUMENT. They cost "
            "their own length only, so this bounds messages more than work.",
        ),
    ] = 10_000
    max_candidates: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Candidates of one request at most; more are refused with INVALID_ARGUMENT. Each is looked up "
            "by itself, so a long list costs more than ranking the whole of a small catalogue.",
        ),
    ] = 10_000
    max_batch_requests: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="Requests of one BatchRecommend call at most; more are refused with INVALID_ARGUMENT.",
        ),
    ] = 1_000
    max_stream_requests: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="Requests of one stream that are open at once: read, their replies not yet taken. Beyond it "
            "the stream is not read, so that a slow reader costs no memory. Twice the batch size keeps batches full.",
        ),
    ] = 128
    max_message_bytes: Annotated[
        int,
        Field(
            ge=1024,
            le=2**31 - 1,
            description="Bytes of one message at most; gRPC refuses a larger one with RESOURCE_EXHAUSTED before "
            "reading it. The default is gRPC's own and holds a million ids.",
        ),
    ] = 4_194_304
    max_metadata_bytes: Annotated[
        int,
        Field(
            ge=1024,
            le=1_048_576,
            description="Bytes of a call's metadata (headers) at most; more is refused with RESOURCE_EXHAUSTED. Room "
            "for a long token and tracing; every call pays for what it sends.",
        ),
    ] = 16_384
    max_streams: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="StreamRecommend calls that are open at once at most; one more is refused with "
            "RESOURCE_EXHAUSTED. An open stream that asks nothing still takes some 50 kB.",
        ),
    ] = 1024
    max_connection_calls: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Calls that are open at once on one connection at most; the client holds back more. One "
            "connection can fill the backlog and no more: raise it with RECOMMENDER_MAX_BACKLOG behind a proxy.",
        ),
    ] = 1024
    max_connection_age_ms: Annotated[
        int,
        Field(
            ge=0,
            le=86_400_000,
            description="Milliseconds after which a connection is asked to go and come again, give or take a tenth. 0: "
            "never. It spreads long-lived clients over servers that came later: lower it where servers come and go.",
        ),
    ] = 1_800_000
    max_connection_age_grace_ms: Annotated[
        int,
        Field(
            ge=1,
            le=86_400_000,
            description="Milliseconds that a connection asked to go has for the calls on it; then they end with "
            "UNAVAILABLE. Only streams last that long: clients open them anew.",
        ),
    ] = 600_000
    max_connection_idle_ms: Annotated[
        int,
        Field(
            ge=0,
            le=86_400_000,
            description="Milliseconds after which a connection without a call is closed. 0: never. It frees what "
            "clients forgot; they connect anew unasked.",
        ),
    ] = 900_000
    keepalive_ms: Annotated[
        int,
        Field(
            ge=0,
            le=86_400_000,
            description="Milliseconds of silence after which the server asks whether a client is still there, and "
            "drops the connection without an answer in 20 seconds. 0: after two hours. It frees the calls of machines "
            "that vanished.",
        ),
    ] = 60_000
    min_ping_interval_ms: Annotated[
        int,
        Field(
            ge=0,
            le=3_600_000,
            description="Milliseconds that must lie between a client's pings; one that pings more often is cut off "
            "(ENHANCE_YOUR_CALM). Pings cost CPU, and load balancers need one in about 30 seconds.",
        ),
    ] = 10_000
    handshake_timeout_ms: Annotated[
        int,
        Field(
            ge=100,
            le=600_000,
            description="Milliseconds that a new connection has for TLS and HTTP/2 to be agreed on. Whoever connects "
            "and says nothing is dropped then.",
        ),
    ] = 10_000
    unknown_items: Annotated[
        UnknownItems,
        Field(
            description="What becomes of ids and keys that the model does not know: report leaves them out and lists "
            "them in the reply, reject refuses the request with INVALID_ARGUMENT.",
        ),
    ] = "report"
    default_timeout_ms: Annotated[
        int,
        Field(
            ge=1,
            le=3_600_000,
            description="Milliseconds that a caller waits who sets no deadline. It keeps work that nobody waits for "
            "out of the backlog.",
        ),
    ] = 5_000
    engine_timeout_ms: Annotated[
        int,
        Field(
            ge=1,
            le=3_600_000,
            description="Milliseconds after which an engine run counts as hung: every caller is told and the process "
            "exits for its orchestrator to start anew. Not applied to loading and warm-up. Far above the slowest run.",
        ),
    ] = 30_000
    deduplicate: Annotated[
        bool,
        Field(
            description="Whether equal requests that wait together share one row. Pays off where many callers send "
            "the same history at the same time.",
        ),
    ] = False
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

    @classmethod
    def load(cls, overrides: Mapping[str, Any] | None = None, folder: Path = Path()) -> Settings:
        """Read `.env.dev`, then `.env`, then the environment, then `overrides` by field name; the later wins.

        Raises SettingsError on an unknown RECOMMENDER_ key or a value that a setting cannot have.
        """
        found: dict[str, tuple[str, str]] = {}
        for name in ENV_FILES:
            for key, value in _env_file(folder / name).items():
                found[key] = (value or "", f" in {name}")
        found.update({key: (value, " in the environment") for key, value in os.environ.items()})
        ours = {key: origin for key, origin in found.items() if key.upper().startswith(PREFIX)}
        values: dict[str, Any] = {}
        for key, (value, where) in ours.items():
            field = key.upper().removeprefix(PREFIX).lower()
            if field not in cls.model_fields:
                raise SettingsError(_unknown(key, value, where))
            if value.strip():
                values[field] = value.strip()
        values.update({key: value for key, value in (overrides or {}).items() if value is not None})
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_faults(error, {k.upper(): where for k, (_, where) in ours.items()})) from error

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Hold settings against each other. Raises SettingsError, which pydantic lets through as it is."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("RECOMMENDER_TLS_CERTIFICATE and RECOMMENDER_TLS_KEY go together: set both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingsError("RECOMMENDER_TLS_CLIENT_CA needs RECOMMENDER_TLS_CERTIFICATE: TLS proves both sides")
        if self.tls_certificate is None and not self.plaintext and not _is_loopback(self.host):
            raise SettingsError(
                f"RECOMMENDER_HOST={self.host} would take calls from other machines in plaintext: set "
                "RECOMMENDER_TLS_CERTIFICATE and RECOMMENDER_TLS_KEY, or RECOMMENDER_PLAINTEXT=true if something else "
                "encrypts, or RECOMMENDER_HOST=127.0.0.1"
            )
        if self.web and self.edge != "envoy":
            raise SettingsError("RECOMMENDER_WEB=true needs RECOMMENDER_EDGE=envoy: grpc.aio speaks gRPC alone")
        if self.cors_origins and not self.web:
            raise SettingsError("RECOMMENDER_CORS_ORIGINS needs RECOMMENDER_WEB=true: pages cannot call by plain gRPC")
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"RECOMMENDER_CORS_ORIGINS has {origin!r}, which is no origin as a browser says it: a scheme, a "
                    "host in small letters and, unless it is the scheme's own, a port, as https://shop.example:8443"
                )
        for field in _NOT_BEHIND_ENVOY if self.edge == "envoy" else ():
            value, default = getattr(self, field), type(self).model_fields[field].default
            if value != default:
                raise SettingsError(
                    f"{key_of(field)}={value} cannot be held with RECOMMENDER_EDGE=envoy, docs/edges.md says why: "
                    f"leave it at {default}, or set RECOMMENDER_EDGE=grpc"
                )
        return self

    @property
    def origins(self) -> tuple[str, ...]:
        """Whose pages may call, one each."""
        return tuple(origin for each in self.cors_origins.split(",") if (origin := each.strip()))

    def environment(self) -> dict[str, str]:
        """What to set in the environment of another process for the same settings."""
        return {key_of(name): _text(getattr(self, name)) for name in type(self).model_fields}

    def shown(self) -> dict[str, str]:
        """Every effective setting by its key in the environment; secrets are masked."""
        return {key_of(name): _text(getattr(self, name)) for name in type(self).model_fields}


def _env_file(path: Path) -> dict[str, str | None]:
    """The keys of a `.env` file, none if there is no such file.

    Raises SettingsError on a line that is neither empty, comment nor KEY=value: the library would leave it out.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} cannot be read: {error}; it must be UTF-8 text, as .env.template is, and readable for this user"
        ) from error
    found: dict[str, str | None] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise SettingsError(
                f"{path}, line {binding.original.line}, is not KEY=value; mend it, or begin it with a #"
            )
        if binding.key is not None:
            found[binding.key] = binding.value
    return found


@dataclass(frozen=True, slots=True)
class Otlp:
    """What the standard OTEL_* variables ask of us: which signals to send, and metrics every how many seconds.

    The OpenTelemetry SDK reads all else that they say; `load` refuses what it would pass over.
    """

    traces: bool = False
    metrics: bool = False
    interval: float = 60.0
    ratio: float = 1.0
    """The share of calls without a caller's trace that is sampled."""

    @classmethod
    def load(cls) -> Otlp:
        """Read the environment. Raises SettingsError on what we cannot do."""
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
    """Whether a signal is to be sent: an endpoint is set, and the exporter is not `none`."""
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


def key_of(field: str) -> str:
    """The key of a field in the environment."""
    return PREFIX + field.upper()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def template() -> str:
    """`.env.template`: every setting with its comment and its default, commented out."""
    lines = [
        "# Settings of `recommender serve`. Copy to .env.dev for local development and take out the # where you",
        "# want another value. Precedence: command line, environment, .env, .env.dev, the defaults shown here.",
    ]
    for key, default, description in described():
        lines += [
            "",
            *textwrap.wrap(description, _TEMPLATE_WIDTH, initial_indent="# ", subsequent_indent="# "),
        ]
        lines.append(f"# {key}={default}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """`docs/settings.md`: the same as a page."""
    rows = [
        f"| `{key}` | {f'`{default}`' if default else 'none'} | {description} |"
        for key, default, description in described()
    ]
    return _PAGE.format(rows="\n".join(rows))


def described() -> list[tuple[str, str, str]]:
    """Every setting as key, default and description, in the order a reader wants them."""
    return [
        (key_of(name), _text(field.default), field.description or "") for name, field in Settings.model_fields.items()
    ]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    return str(value)


def _unknown(key: str, value: str, where: str) -> str:
    known = [key_of(name) for name in Settings.model_fields]
    near = difflib.get_close_matches(key.upper(), known, n=1, cutoff=0.0)[0]
    message = f"{key}={value!r}{where} is not a setting; the nearest is {near}. `recommender config` lists them all."
    if value.startswith(("tcp://", "udp://")) or "_SERVICE_" in key.upper():
        message += f" {_SERVICE_LINKS}."
    return message


def _faults(error: ValidationError, origins: Mapping[str, str]) -> str:
    faults = []
    for fault in error.errors(include_url=False):
        name = str(fault["loc"][0])
        key = key_of(name)
        if name not in Settings.model_fields:
            raise ValueError(f"no setting has the name {name!r}") from error
        value = fault["input"]
        shown = "(secret)" if SecretStr in get_args(Settings.model_fields[name].annotation) else repr(value)
        message = f"{key}={shown}{origins.get(key, '')} cannot be used: {_lower(fault['msg'])}."
        if str(value).startswith(("tcp://", "udp://")):
            message += f" {_SERVICE_LINKS}."
        faults.append(message)
    return " ".join(faults)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
