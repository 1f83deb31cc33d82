"""A seeded list of faults: the same seed gives the same faults at the same times."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

ENGINE_KINDS = {
    "kill engine": 3, "freeze engine": 3, "end engine": 1, "cut engine": 2, "hold engine": 2,
    "hold engine's answers": 1, "slow engine": 2, "garbage from engine": 1, "garbage to engine": 1,
    "partition engine": 0, "mute engine": 0,
}  # fmt: skip
"""Weights; 0: only by name, since it needs a network of its own."""
SERVICE_KINDS = {"kill service": 2, "freeze service": 1, "end service": 1}
ETCD_KINDS = {
    "kill etcd": 2, "freeze etcd": 1, "cut etcd": 1, "hold etcd": 1, "slow etcd": 1, "garbage from etcd": 1,
}  # fmt: skip
MACHINE_KINDS = {"8 CPU hogs": 1}
NETNS_KINDS = (
    "partition engine", "kill engine", "mute engine", "freeze engine", "partition engine", "end engine",
    "kill service", "mute engine", "kill etcd",
)  # fmt: skip
"""What strikes, in turn, where engines have networks of their own and no proxy before them."""
KINDS = {**ENGINE_KINDS, **SERVICE_KINDS, **ETCD_KINDS, **MACHINE_KINDS}
AFTERMATH_S = 8.0
"""After a fault ends its target is left alone for this long: a restart, a lease, a connection."""

ALONE_S = 6.0
"""Between the end of a fault that strikes alone and the next."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """``kind`` strikes ``target`` at ``at_s`` after the start, for ``lasts_s``."""

    kind: str
    target: str
    at_s: float
    lasts_s: float


def build_schedule(
    seed: int,
    seconds: float,
    *,
    engines: Sequence[str],
    services: Sequence[str],
    gap_s: tuple[float, float] = (1.0, 6.0),
    alone: bool = False,
    kinds: Sequence[str] | None = None,
) -> list[Fault]:
    """Faults over ``seconds``, ``gap_s`` apart; with ``alone`` each is over before the next.

    At any moment at most half of the engines, one replica and one party of etcd are struck, so that the cluster can
    do its duty. ``kinds``: exactly these, in turn, instead of a draw by weight.
    """
    rng = random.Random(seed)
    busy: dict[str, float] = {}
    faults: list[Fault] = []
    at_s = 1.0
    while at_s < seconds:
        weights = dict.fromkeys(KINDS, 0) | KINDS
        kind = kinds[len(faults) % len(kinds)] if kinds else rng.choices([*weights], [*weights.values()])[0]
        lasts_s = round(
            rng.uniform(3.5, 7.0) if kind not in ("kill engine", "end engine") else rng.uniform(0, 3), 2
        )
        if "garbage" in kind:
            lasts_s = 1.0
        group = _group(kind, engines, services)
        struck = [name for name in group if busy.get(name, 0.0) > at_s]
        allowed = max(1, len(engines) // 2) if kind in ENGINE_KINDS else 1
        free = [name for name in group if name not in struck]
        if free and len(struck) < allowed:
            target = rng.choice(free)
            faults.append(Fault(kind=kind, target=target, at_s=round(at_s, 2), lasts_s=lasts_s))
            busy[target] = at_s + lasts_s + AFTERMATH_S
            if alone:
                at_s += lasts_s + ALONE_S
        at_s += rng.uniform(*gap_s)
    return faults


def _group(kind: str, engines: Sequence[str], services: Sequence[str]) -> list[str]:
    if kind in ENGINE_KINDS:
        return list(engines)
    if kind in SERVICE_KINDS:
        return list(services)
    return ["etcd"] if kind in ETCD_KINDS else ["machine"]
