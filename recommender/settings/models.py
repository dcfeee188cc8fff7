"""Settings of the models: where versions come from, how they are followed, and how a candidate is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from recommender.settings.group import Group

CandidateMode: TypeAlias = Literal["canary", "shadow"]
"""Whether a candidate answers a share of the requests, or gets copies of them."""


_Reference: TypeAlias = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


class ModelSettings(Group):
    """Settings of sources, followers, the loader and the candidate."""

    num_recommendations: Annotated[int, Field(ge=1)] = 10
    """How many recommendations a request without `limit` gets; also selects the model file {K}_model.onnx in the
    weights folder."""
    weights_dir: Path = Path("weights")
    """Folder of the model files {K}_model.onnx."""
    model: _Reference | None = None
    """Served instead of the file of RECOMMENDER_NUM_RECOMMENDATIONS. A model file. A folder of versions,
    `<root>/<name>`, whose latest version is served and watched, or `<root>/<name>@<version>` for one of them. A model
    in the registry, `models:/<name>@<alias>`, which is watched, or `models:/<name>/<version>`. Or `reference`, the
    small model with random weights in this package. Several are separated by commas: the first answers requests that
    name no model. Empty: none."""
    registry_uri: str = ""
    """Tracking URI of the MLflow registry for `models:/` names, such as http://mlflow:5000. Credentials and time limits
    are MLflow's own variables (MLFLOW_TRACKING_USERNAME, MLFLOW_HTTP_REQUEST_TIMEOUT …). Empty: none."""
    registry_timeout_ms: Annotated[int, Field(ge=100, le=3_600_000)] = 30_000
    """Most milliseconds for one check of a model's source. A registry that hangs is asked again later, and the current
    version keeps serving."""
    model_cache_dir: Path = Path("~/.cache/recommender")
    """Folder of versions from a registry, and of copies of files that are mapped while they are served: vocabularies
    and separate weight files. A volume that outlives the process lets a server start while the registry is down.
    Several processes may share it, but nothing else should write there. It keeps the served versions and the three
    newest others. If the default is not writable, a temporary folder is used, with a warning."""
    candidate: Annotated[
        str | None, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
    ] = None
    """A second version to try next to the first model, named as in RECOMMENDER_MODEL, such as
    `models:/<name>@challenger`. It is loaded once the server is ready, and needs as much memory. If it fails or is slow
    it is rolled back, and the live version answers all requests. Empty: none."""
    candidate_mode: CandidateMode = "canary"
    """canary: the candidate answers a share of the users, by a stable hash of `routing_key`, else of the request id.
    shadow: the candidate gets copies of a share of the requests, and its answers are discarded. Under load copies are
    dropped first."""
    candidate_share_percent: Annotated[float, Field(ge=0, le=100)] = 5.0
    """Percent of users, or of mirrored requests, that the candidate gets. Start small; a copy costs as much as a
    request."""
    candidate_max_error_percent: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Percent of the candidate's requests that may fail, beyond those of the live version, before it is rolled back."""
    candidate_max_latency_ratio: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Highest ratio of the candidate's p99 to the live version's before it is rolled back. 0: no limit."""
    candidate_least_requests: Annotated[int, Field(ge=1, le=2000)] = 200
    """Requests of the candidate that must have ended before it is judged. A p99 of fewer than a hundred is the slowest
    of all."""
    model_poll_ms: Annotated[int, Field(ge=10, le=86_400_000)] = 3_000
    """Milliseconds between two checks of a model's source, plus or minus a fifth: the longest time until a promotion is
    noticed. Each check costs a listing of a folder or a call of a registry. While a registry is down checks become
    rarer, down to one a minute."""
    longest_run_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 0
    """Most milliseconds for a full batch of a version in its proof; a slower version is refused. 0: as many as a run
    may take by RECOMMENDER_ENGINE_TIMEOUT_MS. Set it well above a good version's time on a busy machine: the proof
    shares the CPUs with requests."""
    reload_timeout_ms: Annotated[int, Field(ge=100, le=86_400_000)] = 600_000
    """Most milliseconds for a download, and again for the proof of a version in another process, before the version is
    refused. Keep it far above the need of the largest model on a busy server: the proof runs at low priority."""
