"""The only reader of the environment: every setting with its unit, its reason and when to move it."""

from __future__ import annotations

import difflib
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from recommender.domain import ArenaStrategy, CoreMLFormat, CoreMLUnits, Device, UnknownItems
from recommender.errors import SettingsError
from recommender.telemetry import LogFormat, LogLevel

PREFIX = "RECOMMENDER_"
ENV_FILES = (".env.dev", ".env")
"""Read from the working directory, the later over the earlier, the environment over both."""

_SERVICE_LINKS = (
    "Kubernetes sets such variables for a Service named `recommender`: set `enableServiceLinks: false` in the pod"
)

_TEMPLATE_WIDTH = 100
_PAGE = """\
# Settings

Written by `just docs` from `recommender/settings.py`; a check fails when it is out of date.

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
            "0.0.0.0, and then something in front of it that keeps strangers out.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535, description="TCP port to listen on. 0 takes a free one; the log says which."),
    ] = 50051
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
        Path | None,
        Field(description="Path of a model file to serve instead of the one that the number picks. Empty: none."),
    ] = None
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
            "rounded down), shared out among the engine slots. Lower it where other processes need the cores; "
            "`recommender profile` measures what it costs.",
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
    drain_grace_ms: Annotated[
        int,
        Field(
            ge=0,
            le=3_600_000,
            description="Milliseconds that accepted requests get to finish after SIGTERM or SIGINT. Keep it below the "
            "time after which the orchestrator kills.",
        ),
    ] = 10_000
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
            for key, value in dotenv_values(folder / name, interpolate=False).items():
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

    def shown(self) -> dict[str, str]:
        """Every effective setting by its key in the environment; secrets are masked."""
        return {key_of(name): _text(getattr(self, name)) for name in type(self).model_fields}


def key_of(field: str) -> str:
    """The key of a field in the environment."""
    return PREFIX + field.upper()


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
