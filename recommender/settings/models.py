"""Settings of the models: where versions come from, how they are followed, and how a candidate is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from recommender.settings.group import Group

CandidateMode: TypeAlias = Literal["canary", "shadow"]
"""Whether a candidate answers a share of the requests, or is sent copies of them."""


_Reference: TypeAlias = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


class ModelSettings(Group):
    """What sources, followers, the loader and the candidate's judge read."""

    num_recommendations: Annotated[int, Field(ge=1)] = 10
    """How many recommendations a caller gets who sets no `limit`; also picks the model file {K}_model.onnx in the
    weights folder."""
    weights_dir: Path = Path("weights")
    """Folder of the model files {K}_model.onnx."""
    model: _Reference | None = None
    """What to serve instead of the file that the number picks: a model file; or a folder of versions, `<root>/<name>`,
    whose largest serves and is watched, `<root>/<name>@<version>` for one of them; or a model in the registry,
    `models:/<name>@<alias>`, which is watched, or `models:/<name>/<version>`; or `reference`, the small model with
    random weights that comes with this package. Several, with commas between them: the first answers who names no
    model. Empty: none."""
    registry_uri: str = ""
    """Tracking URI of the MLflow registry that `models:/` names are looked up in, such as http://mlflow:5000.
    Credentials and time limits are MLflow's own variables (MLFLOW_TRACKING_USERNAME, MLFLOW_HTTP_REQUEST_TIMEOUT …).
    Empty: none."""
    registry_timeout_ms: Annotated[int, Field(ge=100, le=3_600_000)] = 30_000
    """Milliseconds that one look at where a model comes from may take. A registry that hangs is asked again later, and
    what serves goes on serving."""
    model_cache_dir: Path = Path("~/.cache/recommender")
    """Folder of versions from a registry, and of copies of files that are mapped while they serve: vocabularies and
    weights in files of their own. A volume that outlives the process lets a server start while the registry is down;
    several processes may share it, and nobody else should write there. The versions that serve and the three newest
    others stay. Where the default cannot be written, a temporary folder serves, with a warning."""
    candidate: Annotated[
        str | None, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
    ] = None
    """A second version to try out beside the first model, named as in RECOMMENDER_MODEL, such as
    `models:/<name>@challenger`. It is loaded once the server is ready, and needs as much memory. One that fails or
    dawdles is rolled back: the live version answers everybody. Empty: none."""
    candidate_mode: CandidateMode = "canary"
    """canary: the candidate answers a share of the users, by a stable hash of `routing_key`, else of the request's id.
    shadow: it is sent copies of a share of the requests, and nobody gets its answers; copies are left out first under
    load."""
    candidate_share_percent: Annotated[float, Field(ge=0, le=100)] = 5.0
    """Percent of users, or of mirrored requests, that the candidate sees. Begin small; a copy costs as much as a
    request."""
    candidate_max_error_percent: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Percent of the candidate's requests that may fail beyond what fails of the live version's before it is rolled
    back."""
    candidate_max_latency_ratio: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """How many times the live version's 99th percentile the candidate's may be before it is rolled back. 0: as slow as
    it likes."""
    candidate_least_requests: Annotated[int, Field(ge=1, le=2000)] = 200
    """Requests of the candidate that must have ended before it is judged. A 99th percentile of fewer than a hundred is
    the slowest of all."""
    model_poll_ms: Annotated[int, Field(ge=10, le=86_400_000)] = 3_000
    """Milliseconds between two looks at where a model comes from, give or take a fifth. It is how long a promotion goes
    unnoticed; each look costs a listing of a folder or a call of a registry. While a registry is down the looks become
    rarer, a minute apart at most."""
    longest_run_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 0
    """Milliseconds that a full batch of a version may take at its trial; a slower version is refused. 0: as long as
    RECOMMENDER_ENGINE_TIMEOUT_MS allows. Set it well above what a good version takes on a busy machine: the trial
    shares the CPUs with the requests."""
    reload_timeout_ms: Annotated[int, Field(ge=100, le=86_400_000)] = 600_000
    """Milliseconds that a download, and then the proof of a version in a process of its own, may take before the
    version is refused. Far above what the largest model needs while this server is busy: the proof runs at low
    priority."""
