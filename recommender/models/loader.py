"""From a verified artifact to a version that answers: engine, checks, batcher, vocabulary, fallback list."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial

import structlog

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost, Observation
from recommender.batching.runs import Tracer
from recommender.batching.statistics import BatchEnded
from recommender.domain import Model
from recommender.engine.engine import OnnxEngine, open_engine
from recommender.engine.machine import memory_growth, resident_memory
from recommender.engine.sessions import as_model_error
from recommender.errors import ModelError
from recommender.models.artifact import Artifact, check_listed
from recommender.models.attributes import ItemAttributes
from recommender.models.checks import check_answers, check_seconds, measure
from recommender.models.description import describe
from recommender.models.fallback import read_fallback
from recommender.models.features import open_tokens
from recommender.models.sources.reference import is_reference
from recommender.models.trials import check_histories, check_parity
from recommender.models.version import Version
from recommender.models.vocabulary import Vocabulary
from recommender.settings.engine import EngineSettings
from recommender.settings.settings import Settings
from recommender.threads import in_background

log = structlog.get_logger(__name__)


class Loader:
    """Loads versions, each with its own engine and batcher.

    `open_engine` builds the engine and may block, `make_batcher` gives it a batcher for the cost of its runs. `limit`
    is the number of recommendations for requests without one, `max_history` the most items of a history,
    `max_batch_size` the rows of the largest batch, and `longest_run` the seconds that a batch may take in the checks.
    `prepare` gets each version before it is handed out.
    """

    def __init__(
        self,
        open_engine: Callable[[Artifact], OnnxEngine],
        make_batcher: Callable[[OnnxEngine, Cost], Batcher],
        *,
        limit: int,
        max_history: int,
        max_batch_size: int,
        longest_run: float,
        prepare: Callable[[Version], Awaitable[None]],
    ) -> None:
        self._open_engine = open_engine
        self._make_batcher = make_batcher
        self._limit = limit
        self._max_history = max_history
        self._max_batch_size = max_batch_size
        self._longest_run = longest_run
        self._prepare = prepare

    async def load(self, artifact: Artifact, proven: Sequence[Observation] = ()) -> Version:
        """Load, warm up and check a version.

        What its proof in another process has `proven` is neither measured nor tried with random histories again.

        Raises ModelError if it does not fit its card, its limits or this server's settings; nothing is left of it.
        """
        if artifact.card is None:
            log.warning("model has no card: nothing to verify it by", path=str(artifact.path))
        if await in_background(is_reference, artifact):
            log.warning("the model has random weights: it is the reference model, for trying the server out")
        engine = await in_background(self._open_engine, artifact)
        try:
            if engine.fallback_reason is not None:
                log.warning("the model runs on the CPU", reason=engine.fallback_reason)
            self._check_limit(engine.model)
            before = resident_memory()
            await engine.warm_up(self._max_batch_size)
            await check_answers(engine, artifact)
            await check_parity(engine, artifact)
            if not proven:
                await check_histories(engine, artifact.path)
            with as_model_error(artifact.path):
                measured = tuple(proven or await measure(engine.run, engine.model, self._max_batch_size))
            check_seconds(measured, artifact.path, self._longest_run)
            working = memory_growth(before)
            batcher = self._make_batcher(engine, Cost.fit(measured))
            version = await in_background(self._version, engine, artifact, batcher, measured)
            tokens = [each.vocabulary for each in version.tokens.values()]
            for vocabulary in (version.vocabulary, version.user_vocabulary, version.type_vocabulary, *tokens):
                if vocabulary is not None and not proven:
                    await in_background(vocabulary.check)
            await self._prepare(version)
        except BaseException:
            await in_background(engine.close)
            raise
        _log_loaded(engine, artifact, working)
        return version

    def _check_limit(self, model: Model) -> None:
        """Raise ModelError if the default limit is more than the model gives."""
        if self._limit > model.max_k:
            raise ModelError(
                f"RECOMMENDER_NUM_RECOMMENDATIONS is {self._limit} and {model.label} returns "
                f"{model.max_k} at most: lower it, or export the model with more"
            )

    def _version(
        self, engine: OnnxEngine, artifact: Artifact, batcher: Batcher, measured: tuple[Observation, ...]
    ) -> Version:
        model, card = engine.model, artifact.card
        vocabulary = user_vocabulary = type_vocabulary = fallback = None
        if card is not None and artifact.vocabulary is not None:
            vocabulary = Vocabulary.open(artifact.vocabulary, model.known_items or card.items)
        if model.users is not None and artifact.user_vocabulary is not None:
            user_vocabulary = Vocabulary.open(artifact.user_vocabulary, model.users.count, of="user")
        if model.history_types is not None and artifact.type_vocabulary is not None:
            type_vocabulary = Vocabulary.open(artifact.type_vocabulary, model.history_types.count, of="type")
        if card is not None and artifact.fallback is not None:
            fallback = read_fallback(artifact.fallback, card.items, model.never_recommended)
        return Version(
            model=model,
            batcher=batcher,
            abilities=engine.contract.inputs | engine.contract.outputs,
            sha256=artifact.sha256,
            embedding_size=card.embedding_size if card else None,
            embedding_space=card.embedding_space if card else None,
            execution_provider=engine.provider,
            loaded_at=datetime.now(UTC),
            limit=self._limit,
            plain_history=min(self._max_history, model.longest_history or self._max_history),
            plain_items=-1 if _needs_features(model) or _needs_events(model) else _plain_items(model),
            needs_features=_needs_features(model),
            plain_beside=_plain_items(model),
            label=model.label,
            close_engine=engine.close,
            measured=measured,
            vocabulary=vocabulary,
            user_vocabulary=user_vocabulary,
            type_vocabulary=type_vocabulary,
            tokens=open_tokens(artifact),
            fallback=fallback or (),
            items_table=artifact.items_table,
            aliases=artifact.release.aliases if artifact.release else (),
        )


def _plain_items(model: Model) -> float:
    """Ids below this are items, and a history of them is enough to rank by."""
    if model.users is not None and model.users.unknown == "fallback":
        return 0
    if model.padding_id is not None:
        return min(model.padding_id, model.readable or 0)
    return math.inf if model.readable is None else model.readable


def _needs_features(model: Model) -> bool:
    """Whether a request may not leave out every feature."""
    return any(feature.default is None for feature in model.features)


def _needs_events(model: Model) -> bool:
    """Whether a history may not come without types or times."""
    return any(each is not None and each.default is None for each in (model.history_types, model.history_times))


def _log_loaded(engine: OnnxEngine, artifact: Artifact, working: int | None) -> None:
    """Log a version, with what its constants, its sessions and its batches (`working`) take of the memory."""
    model, memory = engine.model, engine.memory
    exact, asked = engine.filter_thresholds or (None, None)
    log.info(
        "loaded",
        model=model.label,
        sha256=artifact.sha256[:12],
        items=model.items,
        max_k=model.max_k,
        provider=engine.provider,
        threads=engine.threads,
        constants_mb=_mb(memory.constants),
        loaded_mb=_mb(memory.loaded),
        copies=None if memory.copies is None else round(memory.copies, 1),
        working_mb=_mb(working),
        coarse_rows=engine.coarse_rows,
        filters_exact_items=exact,
        filters_asked_share=None if asked is None else round(asked, 3),
    )
    if not engine.contract.batched:
        log.warning("model has the older form without a batch axis: rows run one by one, so batching saves nothing")


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 1)


def open_model(settings: EngineSettings, artifact: Artifact, threads: int | None = None) -> OnnxEngine:
    """Load an artifact's model as the settings say, with `threads` CPUs a run instead of their number; blocks.

    Raises ModelError and ProviderError as `open_engine` does, and ModelError if the model opens a file that its card
    does not list.
    """
    check_listed(artifact)
    return open_engine(settings, artifact.path, partial(describe, artifact), threads)


def loader(
    settings: Settings,
    tracer: Callable[[Model], Tracer | None] = lambda _: None,
    opened_engine: Callable[[OnnxEngine], None] = lambda _: None,
    prepare: Callable[[Version], Awaitable[None]] | None = None,
) -> Loader:
    """A loader of versions by the settings; `tracer` gives the tracer of a model's calls, None for none.

    `opened_engine` gets each engine before it is warmed up, `prepare` each version before it is handed out.
    Without `prepare` a version is joined with its own table of items, so that a bad one is found.
    """

    def batcher(engine: OnnxEngine, cost: Cost) -> Batcher:
        return Batcher(
            engine,
            max_batch_size=settings.engine.max_batch_size,
            max_backlog=settings.engine.max_backlog,
            engine_timeout=settings.engine.engine_timeout_ms / 1e3,
            cost=cost,
            slots=settings.engine.engine_slots,
            deduplicate=settings.engine.deduplicate,
            max_wait=settings.engine.max_wait_ms / 1e3,
            tracer=tracer(engine.model),
            observer=_log_batch if settings.operations.log_level == "debug" else None,
        )

    def opened(artifact: Artifact) -> OnnxEngine:
        engine = open_model(settings.engine, artifact)
        if settings.engine.cuda_graph and not engine.captures:
            log.warning("runs are not captured as CUDA graphs: the model has branches or loops, or is not on CUDA")
        opened_engine(engine)
        return engine

    return Loader(
        opened,
        batcher,
        limit=settings.models.num_recommendations,
        max_history=settings.requests.max_history,
        max_batch_size=settings.engine.max_batch_size,
        longest_run=min(settings.models.longest_run_ms or math.inf, settings.engine.engine_timeout_ms) / 1e3,
        prepare=prepare or ItemAttributes().attach,
    )


def _log_batch(ended: BatchEnded) -> None:
    log.debug(
        "batch",
        number=ended.number,
        rows=ended.rows,
        callers=ended.callers,
        cells=ended.cells,
        closed=ended.closed.value,
        longest_wait=round(ended.longest_wait, 6),
        run=round(ended.run, 6),
        failed=ended.failed,
    )
