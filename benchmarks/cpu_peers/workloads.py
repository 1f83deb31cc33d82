"""The workloads: sizes, prompts, arrival times.

Prompts are lists of token ids, drawn from (seed, workload, round): every system gets the same prompts in a
round, and no two rounds share any, so a prefix cache helps only within a round.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

_LOWEST_ID, _HIGHEST_ID = 300, 8000  # ordinary tokens in the vocabulary of both models


@dataclass(frozen=True, slots=True)
class Workload:
    """``num_prompts`` requests at once; lengths in tokens. ``warm_prompts`` of them go first, unmeasured."""

    name: str
    title: str
    model: str
    num_prompts: int
    input_tokens: int
    output_tokens: int
    prefix_tokens: int = 0
    warm_prompts: int = 1
    rounds: int = 5
    slots: int = 1
    """Sequences that have to run at once, for servers that want to know."""

    @property
    def prompt_tokens(self) -> int:
        return self.prefix_tokens + self.input_tokens


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "1 request, 128 in / 128 out", "0.6b", 1, 128, 128, rounds=9),
        Workload("W2", "16 at once, 256 in / 128 out", "0.6b", 16, 256, 128, warm_prompts=16, slots=16),
        Workload(
            "W3", "32 at once, 1024 shared + 64 in / 32 out", "0.6b", 32, 64, 32, 1024, warm_prompts=2, slots=32
        ),
        Workload(
            "W4", "tiny model, 64 at once, 64 in / 64 out", "tiny", 64, 64, 64,
            warm_prompts=64, rounds=9, slots=64,
        ),
        Workload("W5", "1 request, 8000 in / 64 out", "0.6b", 1, 8000, 64),
        Workload("W6", "Poisson arrivals, 256 in / 128 out", "0.6b", 40, 256, 128, rounds=1, slots=16),
    )
}  # fmt: skip
START = "start"


def make_prompts(workload: Workload, seed: int, round_index: int, num: int | None = None) -> list[list[int]]:
    """The prompts of a round; negative rounds are warm-ups."""
    rng = random.Random(f"{seed}/{workload.name}/{round_index}")
    prefix = _ids(rng, workload.prefix_tokens)
    return [prefix + _ids(rng, workload.input_tokens) for _ in range(num or workload.num_prompts)]


def poisson_times_s(rate: float, num: int, seed: int) -> list[float]:
    """When to send: the first at 0, then exponential gaps; the same for every system at one rate."""
    rng = random.Random(f"{seed}/arrivals/{rate}")
    times = [0.0]
    while len(times) < num:
        times.append(times[-1] + rng.expovariate(rate))
    return times


def select(names: Sequence[str]) -> list[str]:
    """Checked names in the order in which they run: models change last, starting comes first."""
    known = [START, "W1", "W2", "W3", "W5", "W6", "W4"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown workload {unknown[0]!r}; known: {', '.join(known)}")
    return [name for name in known if name in names]


def _ids(rng: random.Random, num: int) -> list[int]:
    return [rng.randrange(_LOWEST_ID, _HIGHEST_ID) for _ in range(num)]
