"""Which calls are traced: the SDK's sampler, asked before a span is made.

A call that is not sampled costs one random number and a comparison; a span that is thrown away would cost more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace import SpanKind, get_current_span

from recommender.edges.calls import carrier_in

_UNSAMPLED = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]")
"""A valid `traceparent` whose sampled flag is off."""
_NO_PARENT = Context()


class Sampling:
    """Samples the calls whose SERVER spans `provider` makes; the span that is started next agrees.

    The standard OTEL_* variables set sampler, span limits and propagators. `ratio` is their share of sampled calls
    among those without a caller's trace. It is compared with the trace id before the SDK is asked, as the SDK does.
    """

    def __init__(self, resource: Resource, ratio: float) -> None:
        self._ids = _DrawnIds()
        self.provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._sampler = self.provider.sampler
        self._bound = TraceIdRatioBased.get_bound_for_rate(ratio)
        self._drops_the_unsampled = "remoteParentNotSampled:AlwaysOffSampler" in self._sampler.get_description()
        self.context_keys = frozenset(propagate.get_global_textmap().fields)
        """Metadata keys that carry the caller's trace context."""

    def samples(self, method: str, metadata: Collection[tuple[str, str | bytes]]) -> bool:
        """Whether a call is sampled."""
        return self.parent(method, carrier_in(metadata, self.context_keys)) is not None

    def parent(self, method: str, carrier: Mapping[str, str]) -> Context | None:
        """The context of a call's span; None if the call is not sampled. `carrier` has the values of `context_keys`."""
        if self._drops_the_unsampled and _UNSAMPLED.fullmatch(carrier.get("traceparent", "")):
            return None  # the sampler would say the same; most calls of a sampled system are such
        trace_id = self._ids.draw()
        if not carrier and trace_id & TraceIdRatioBased.TRACE_ID_LIMIT >= self._bound:
            return None
        parent = propagate.extract(carrier, _NO_PARENT) if carrier else _NO_PARENT
        caller = get_current_span(parent).get_span_context()
        trace_id = caller.trace_id if caller.is_valid else trace_id
        sampled = self._sampler.should_sample(parent, trace_id, method, SpanKind.SERVER)
        return None if sampled.decision is Decision.DROP else parent


class _DrawnIds(RandomIdGenerator):
    """Draws trace ids ahead of the SDK, so that the sampler can be asked first."""

    def __init__(self) -> None:
        self._drawn: int | None = None

    def draw(self) -> int:
        """Draw the trace id of the next root span."""
        self._drawn = super().generate_trace_id()
        return self._drawn

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self._drawn is None else self._drawn
