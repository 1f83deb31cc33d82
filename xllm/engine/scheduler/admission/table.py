"""Admission policies by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xllm.engine.scheduler.admission.conservative import ConservativeAdmission
from xllm.engine.scheduler.admission.history import OutputHistory
from xllm.engine.scheduler.admission.past_future import PastFutureAdmission
from xllm.engine.scheduler.admission.policy import AdmissionPolicy
from xllm.engine.scheduler.admission.watermark import WatermarkAdmission
from xllm.engine.scheduler.admission.zero_evict import ZeroEvictAdmission
from xllm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionSettings:
    """What the policies need; each reads its own part."""

    watermark: float = 0.01
    """watermark: share of blocks kept for growth."""
    history_window: int = 200
    """past-future: finished outputs remembered per class."""
    reserve: float = 0.05
    """past-future: share of the pool that predictions may not use."""
    prior_tokens: int = 512
    """past-future: output length assumed before anything has finished."""
    horizon_tokens: int = 256
    """zero-evict: tokens everybody is assumed to produce at most."""
    chunk_tokens: int = 1024
    """Prompt tokens a step can take: how long unfinished prefills still last."""
    depth: int = 1
    """Steps in flight: each adds a token of lag."""
    seed: int = 0
    """Of sampled lengths."""


def _past_future(settings: AdmissionSettings) -> AdmissionPolicy:
    history = OutputHistory(
        window=settings.history_window, prior_tokens=settings.prior_tokens, seed=settings.seed
    )
    return PastFutureAdmission(
        history,
        reserve=settings.reserve,
        chunk_tokens=settings.chunk_tokens,
        lag_tokens=settings.depth - 1,
    )


ADMISSION_POLICIES: dict[str, Callable[[AdmissionSettings], AdmissionPolicy]] = {
    "watermark": lambda settings: WatermarkAdmission(settings.watermark),
    "conservative": lambda settings: ConservativeAdmission(),
    "past-future": _past_future,
    "zero-evict": lambda settings: ZeroEvictAdmission(
        horizon_tokens=settings.horizon_tokens, lag_tokens=settings.depth - 1
    ),
}


def build_admission(name: str, settings: AdmissionSettings) -> AdmissionPolicy:
    """A policy by name; ConfigError names the known ones."""
    build = ADMISSION_POLICIES.get(name)
    if build is None:
        raise ConfigError(
            f"unknown admission policy {name!r}", hint=f"one of {', '.join(sorted(ADMISSION_POLICIES))}"
        )
    return build(settings)
