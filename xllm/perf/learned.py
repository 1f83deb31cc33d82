"""LearnedStepTime: the roofline with factors learned online.

    T = f0 * 1 ms + f1 * rows + max(f2 * compute, f3 * memory) + f4 * decode attention + f5 * prefill attention

Each term is the prior's seconds for the shape (:class:`StepTimeProfile`), each factor says how much slower than the
prior the machine really is; the first is the overhead of a step in milliseconds. Factors are fitted by recursive
least squares with exponential forgetting on *relative* errors: the row of the regression is divided by the measured
time, so that a decode of 2 ms counts as much as a prefill of 2 s. The maximum is piecewise linear: each sample
teaches the factor of the side that bounds it (report 2.2, our completion).

INVARIANTS
- Factors are finite and >= 0, always: a sample that would break that is dropped, and what is broken goes back to the
  prior with a log line. A schedule is never made from NaN.
- A sample is predicted before it is learned from, so ``error`` is one over data the fit had not seen.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xllm.perf.step_time import StepShape, StepTimeProfile
from xllm.types.instance import StepCosts

log = logging.getLogger(__name__)

NUM_FACTORS = 6
NAMES = ("overhead", "rows", "compute", "memory", "decode attention", "prefill attention")
FORGETTING = 0.998
"""Weight of a sample after the next one: half of it is forgotten after 350."""
NOISE = 0.1
"""Relative standard deviation of a measured step; sets how fast the first samples are believed."""
MAX_FACTOR = 1e6
MAX_VARIANCE = 100.0
"""Forgetting pauses where a factor's relative variance has grown to this: unexcited directions must not wind up."""
RECENT = 256
WARM_SAMPLES = 256
SAMPLE_EVERY = 16

Floats = NDArray[np.float64]


class LearnedStepTime:
    """See the module. ``factors`` restores an earlier fit; a broken one is logged and the prior used."""

    is_known = True

    def __init__(self, prior: StepTimeProfile, factors: Sequence[float] | None = None) -> None:
        self.prior = prior
        self.num_samples = 0
        self.num_rejected = 0
        self._prior_factors = np.array([prior.overhead_s * 1e3, 1.0, 1.0, 1.0, 1.0, 1.0])
        self._factors = self._prior_factors.copy()
        self._f: list[float] = []
        self._covariance: Floats = np.eye(NUM_FACTORS)
        self._errors = [0.0] * RECENT
        self._num_errors = 0
        self._ticks = 0
        flops_s, bytes_s = prior.peak_flops * prior.efficiency, prior.bandwidth_bytes_s * prior.efficiency
        self._compute_s = 2.0 * prior.num_params / flops_s
        self._pair_s = prior.pair_flops / flops_s
        self._kv_s = prior.kv_bytes_per_token / bytes_s
        self._bytes_s = bytes_s
        self._dense_memory_s = prior.weight_bytes / bytes_s
        self._row_s = prior.row_s or 1e-6
        self._reset(factors)

    # -- prediction -------------------------------------------------------------------------------------------------

    def _terms(self, shape: StepShape) -> tuple[float, float, float, float, float, float]:
        tokens, decode = shape.num_tokens, shape.decode_context
        memory_s = self._dense_memory_s
        if self.prior.num_experts:
            memory_s = self.prior.weight_bytes_read(tokens) / self._bytes_s
        compute_s, pair_s, kv_s = self._compute_s, self._pair_s, self._kv_s
        chunk_pairs, chunk_context = shape.query_context - decode, shape.context_tokens - decode
        return (
            1e-3,
            self._row_s * shape.num_rows,
            compute_s * tokens,
            memory_s,
            max(pair_s, kv_s) * decode,
            max(pair_s * chunk_pairs, kv_s * chunk_context),
        )

    def _time_of(self, terms: tuple[float, float, float, float, float, float]) -> float:
        f = self._f
        compute, memory = f[2] * terms[2], f[3] * terms[3]
        linear = compute if compute > memory else memory
        return f[0] * terms[0] + f[1] * terms[1] + linear + f[4] * terms[4] + f[5] * terms[5]

    def predict(self, shape: StepShape) -> float:
        """Seconds a step of this shape will last."""
        return self._time_of(self._terms(shape))

    def marginal_s(self, base: StepShape, start: int, count: int) -> float:
        """Seconds of a step that is ``base`` and ``count`` more tokens of one row that starts at ``start``."""
        pairs = count * (2 * start + count + 1) // 2
        is_decode = start + 1 if count == 1 else 0
        return self.predict(
            StepShape(
                base.num_tokens + count,
                base.context_tokens + start + count,
                base.query_context + pairs,
                base.decode_context + is_decode,
                base.num_rows + 1,
            )
        )

    def costs(self, num_rows: int) -> StepCosts:
        """The fit as seconds per unit; of a mixture of experts, the weights that ``num_rows`` tokens read."""
        f, memory_s = self._f, self._dense_memory_s
        if self.prior.num_experts:
            memory_s = self.prior.weight_bytes_read(max(1, num_rows)) / self._bytes_s
        return StepCosts(
            overhead_s=f[0] * 1e-3,
            row_s=f[1] * self._row_s,
            token_s=f[2] * self._compute_s,
            weights_s=f[3] * memory_s,
            context_s=f[4] * max(self._pair_s, self._kv_s),
            pair_s=f[5] * self._pair_s,
        )

    # -- learning ---------------------------------------------------------------------------------------------------

    def wants_sample(self) -> bool:
        """Every step at first, later one in sixteen: a fit needs no more and a step has better things to do."""
        self._ticks += 1
        return self.num_samples < WARM_SAMPLES or self._ticks % SAMPLE_EVERY == 0

    def observe(self, shape: StepShape, measured_s: float) -> None:
        """A step of this shape lasted ``measured_s``; a time that is no positive number is dropped."""
        if not (0.0 < measured_s < math.inf):
            self.num_rejected += 1
            return
        terms = self._terms(shape)
        error = (self._time_of(terms) - measured_s) / measured_s
        self._errors[self._num_errors % RECENT] = abs(error)
        self._num_errors += 1
        self.num_samples += 1
        row = np.array(terms)
        is_compute = self._f[2] * terms[2] > self._f[3] * terms[3]
        row[3 if is_compute else 2] = 0.0
        row *= self._scale / measured_s
        self._update(row, -error)

    def _update(self, row: Floats, residual: float) -> None:
        """One step of recursive least squares in units of the scale: factors = scale * weights."""
        p = self._covariance
        gain = p @ row
        forget = FORGETTING if float(np.trace(p)) < MAX_VARIANCE else 1.0
        gain /= forget * NOISE * NOISE + float(row @ gain)
        factors = self._factors + self._scale * gain * residual
        covariance = (p - np.outer(gain, row @ p)) / forget
        if not (np.isfinite(factors).all() and np.isfinite(covariance).all()):
            log.warning("step-time fit: factors became %s; back to the prior", factors.tolist())
            self._reset(None)
            return
        self._factors = np.clip(factors, 0.0, MAX_FACTOR)
        self._covariance = (covariance + covariance.T) / 2.0
        self._f = self._factors.tolist()

    def _reset(self, factors: Sequence[float] | None) -> None:
        self._covariance = np.eye(NUM_FACTORS)
        start = self._prior_factors
        if factors is not None:
            fault = find_fault(factors)
            if fault:
                log.warning("step-time fit: %s; starting from the prior %s", fault, self.prior.name)
            else:
                start = np.array(factors, dtype=np.float64)
                self._covariance *= 0.01  # it is from this machine: believe it, but keep learning
        self._factors = start.copy()
        self._scale = np.maximum(start, 0.1)
        self._f = self._factors.tolist()

    # -- what is known ----------------------------------------------------------------------------------------------

    @property
    def factors(self) -> tuple[float, ...]:
        """The fit; see :data:`NAMES`."""
        return tuple(self._f)

    @property
    def error(self) -> float:
        """Median |relative error| of the last predictions (at most 256); 0: none yet."""
        recent = sorted(self._errors[: min(self._num_errors, RECENT)])
        return recent[len(recent) // 2] if recent else 0.0


def find_fault(factors: Sequence[float]) -> str:
    """What is wrong with stored factors; "" when nothing is."""
    if len(factors) != NUM_FACTORS:
        return f"{len(factors)} factors where {NUM_FACTORS} are expected"
    for name, value in zip(NAMES, factors, strict=True):
        if not (isinstance(value, int | float) and 0.0 <= value <= MAX_FACTOR):
            return f"the factor of {name} is {value!r}"
    return ""
