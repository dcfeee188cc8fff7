"""Runs in a few fixed shapes, through buffers that stay on the device.

A GPU is fast with repeated shapes: memory is allocated once, kernels are chosen once, and a whole run can be captured
and replayed. So a batch is padded up to its bucket (rows × history × k), its arrays are copied into that bucket's
buffers, and the answer is cut back to the requested size. Padding rows hold item 0 once; their answers are discarded.
The code is the same on every device, and is tested on the CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnxruntime

from recommender.domain import Model
from recommender.engine.contract import PER_ITEM, Contract, Feed, Outputs
from recommender.engine.features import Array, filled

_LEAST_HISTORY = 8
_HISTORY_STEP = 4


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of a run: rows, items of the longest history, and recommendations for each row."""

    rows: int
    history: int
    k: int


def bucket_for(rows: int, history: int, k: int, model: Model) -> Bucket:
    """The smallest bucket that holds a batch.

    Rows go by powers of two, histories by powers of four from 8 to the longest that the network reads, and
    `k` from the model's default number by powers of two to the most it gives.
    """
    longest = _LEAST_HISTORY
    while longest < history:
        longest *= _HISTORY_STEP
    if model.longest_history is not None:
        longest = min(longest, model.longest_history)
    number = model.default_k if k <= model.default_k else min(_power_of_two(k), model.max_k)
    return Bucket(_power_of_two(rows), longest, number)


class Buckets:
    """The buckets of one session; runs of one bucket follow each other.

    `device` is cpu or cuda. With `capture`, each bucket's runs are captured by the provider as a graph. `fixed` are
    inputs that every run is given.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        contract: Contract,
        model: Model,
        *,
        device: str = "cpu",
        device_id: int = 0,
        capture: bool = False,
        fixed: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        self._session = session
        self._contract = contract
        self._fixed = fixed
        self._model = model
        self._device = device
        self._device_id = device_id
        self._capture = capture
        self._bound: dict[Bucket, _Bound] = {}
        self._lock = threading.Lock()

    def fits(self, feed: Feed) -> bool:
        """Whether the run names no items: such lists have their own length and use no bucket."""
        return not any(feed[name].size for name in ("excluded", "candidates") if name in feed)

    def shapes(self, max_rows: int, max_history: int) -> Iterator[Bucket]:
        """The buckets that requests for the default number meet, up to so many rows and items."""
        rows = 1
        while rows < 2 * max_rows:
            history, seen = 1, 0
            while seen < max_history:
                bucket = bucket_for(rows, history, self._model.default_k, self._model)
                if bucket.history == seen:
                    break
                yield bucket
                seen = bucket.history
                history = seen + 1
            rows *= 2

    def run(self, feed: Feed, k: int, options: onnxruntime.RunOptions) -> Outputs:
        """Run a feed that `fits`; returns recommendations and scores of its rows only."""
        rows, history = feed["user_history"].shape
        bucket = bucket_for(rows, history, k, self._model)
        with self._lock:
            bound = self._bound.get(bucket)
            if bound is None:
                bound = self._bound[bucket] = _Bound(
                    self._session,
                    self._contract,
                    bucket,
                    len(self._bound) + 1,
                    self._device,
                    self._device_id,
                    self._fixed,
                )
            if self._capture:
                options.add_run_config_entry("gpu_graph_id", str(bound.number))
            return [output[:rows] for output in bound.run(self._session, feed, options)]

    def keep_out(self, options: onnxruntime.RunOptions) -> None:
        """Let a run that fits no bucket go uncaptured."""
        if self._capture:
            options.add_run_config_entry("gpu_graph_id", "-1")


class _Bound:
    """One bucket's buffers, bound to the session; `number` distinguishes its captured graph."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        contract: Contract,
        bucket: Bucket,
        number: int,
        device: str,
        device_id: int,
        fixed: Mapping[str, np.ndarray],
    ) -> None:
        self.number = number
        self._padding = contract.padding
        self._staged: dict[str, Array] = {
            "user_history": np.zeros((bucket.rows, bucket.history), np.int64),
            "history_length": np.ones(bucket.rows, np.int64),
        }
        if "user" in contract.inputs:
            self._staged["user"] = np.zeros(bucket.rows, np.int64)
        for name in PER_ITEM & contract.inputs:
            self._staged[name] = np.zeros((bucket.rows, bucket.history), np.int64)
        self._features = {feature.name: filled(feature, bucket.rows) for feature in contract.features}
        self._staged |= {name: values.copy() for name, values in self._features.items()}

        def buffer(shape: tuple[int, ...], element: type[np.generic]) -> onnxruntime.OrtValue:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, element, device, device_id)

        self._inputs = {name: buffer(staged.shape, staged.dtype.type) for name, staged in self._staged.items()}
        self._outputs = [
            buffer((bucket.rows, bucket.k), np.int64),
            buffer((bucket.rows, bucket.k), np.float32),
        ]
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, array in _constant_inputs(contract, bucket).items():
            self._binding.bind_cpu_input(name, array)
        for name, array in fixed.items():
            # `bind_cpu_input` knows no input that has a default.
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name, value in zip(("recommendations", "scores"), self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(
        self, session: onnxruntime.InferenceSession, feed: Feed, options: onnxruntime.RunOptions
    ) -> Iterator[np.ndarray]:
        rows, history = feed["user_history"].shape
        staged = self._staged
        staged["user_history"].fill(self._padding)
        staged["user_history"][:rows, :history] = feed["user_history"]
        staged["history_length"].fill(1)
        staged["history_length"][:rows] = feed["history_length"]
        if "user" in staged:
            staged["user"].fill(0)
            staged["user"][:rows] = feed["user"]
        for name in PER_ITEM & staged.keys():
            staged[name].fill(0)
            staged[name][:rows, :history] = feed[name]
        for name, fillers in self._features.items():
            staged[name][rows:] = fillers[rows:]
            staged[name][:rows] = feed[name]
        for name, value in self._inputs.items():
            value.update_inplace(staged[name])
        session.run_with_iobinding(self._binding, options)
        # On the CPU `numpy` looks into the buffer, which the next run of this bucket overwrites.
        return (np.array(output.numpy()) for output in self._outputs)


def _constant_inputs(contract: Contract, bucket: Bucket) -> Mapping[str, np.ndarray]:
    arrays = {
        "k": np.array([bucket.k], np.int64),
        "excluded": np.empty((0, 2), np.int64),
        "candidates": np.empty((bucket.rows, 0), np.int64),
        "candidates_length": np.zeros(bucket.rows, np.int64),
    }
    return {name: array for name, array in arrays.items() if name in contract.inputs}


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
