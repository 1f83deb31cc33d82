"""A seeded list of faults: the same seed gives the same faults at the same times."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

ENGINE_KINDS = {
    "kill engine": 3, "freeze engine": 3, "end engine": 1, "cut engine": 2, "hold engine": 2,
    "hold engine's answers": 1, "slow engine": 2, "crawl engine": 1, "garbage from engine": 1, "garbage to engine": 1,
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
"""From the moment when all is well after a fault that strikes alone to the next."""


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
    kinds: Sequence[str] | None = None,
) -> list[Fault]:
    """Faults over ``seconds``, ``gap_s`` apart, which may overlap.

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
        lasts_s = _duration_s(rng, kind)
        group = _group(kind, engines, services)
        struck = [name for name in group if busy.get(name, 0.0) > at_s]
        allowed = max(1, len(engines) // 2) if kind in ENGINE_KINDS else 1
        free = [name for name in group if name not in struck]
        if free and len(struck) < allowed:
            target = rng.choice(free)
            faults.append(Fault(kind=kind, target=target, at_s=round(at_s, 2), lasts_s=lasts_s))
            busy[target] = at_s + lasts_s + AFTERMATH_S
        at_s += rng.uniform(*gap_s)
    return faults


def build_turns(
    seed: int, kinds: Sequence[str], *, engines: Sequence[str], services: Sequence[str]
) -> list[Fault]:
    """One fault of each of ``kinds``, in this order. When one strikes (``at_s`` 0 here) is up to the run: alone."""
    rng = random.Random(seed)
    return [
        Fault(kind=kind, target=rng.choice(_group(kind, engines, services)), at_s=0.0, lasts_s=_duration_s(rng, kind))
        for kind in kinds
    ]  # fmt: skip


def build_outage(seed: int, seconds: float, *, engines: Sequence[str]) -> list[Fault]:
    """etcd is away for ``seconds``. Meanwhile half of the engines are killed, and one of the others struck at a time.

    A killed engine is started again at once, and stays out until etcd returns: only there can it say that it is a new
    incarnation. A last fault strikes when etcd is back.
    """
    rng = random.Random(seed)
    outage = Fault(kind="kill etcd", target="etcd", at_s=5.0, lasts_s=seconds)
    faults, end_s = [outage], outage.at_s + seconds
    killed, spared = engines[: len(engines) // 2], engines[len(engines) // 2 :]
    for number, name in enumerate(killed):
        at_s = outage.at_s + seconds * (number + 0.3) / len(killed)
        faults.append(Fault(kind="kill engine", target=name, at_s=round(at_s, 2), lasts_s=0.0))
    kinds = [
        kind for kind, weight in ENGINE_KINDS.items() if weight and kind not in ("kill engine", "end engine")
    ]
    at_s, kinds = outage.at_s + 8.0, rng.sample(kinds, len(kinds))
    while at_s < end_s - 15.0:
        kind, target = kinds[len(faults) % len(kinds)], spared[len(faults) % len(spared)]
        lasts_s = _duration_s(rng, kind)
        faults.append(Fault(kind=kind, target=target, at_s=round(at_s, 2), lasts_s=lasts_s))
        at_s += lasts_s + rng.uniform(4.0, 8.0)
    faults.append(Fault(kind="freeze engine", target=spared[0], at_s=round(end_s + 15.0, 2), lasts_s=4.0))
    return sorted(faults, key=lambda fault: fault.at_s)


def _duration_s(rng: random.Random, kind: str) -> float:
    """How long a fault of a kind lasts; of an end, until the process is started again."""
    if "garbage" in kind:
        return 1.0
    return round(rng.uniform(0, 3) if kind in ("kill engine", "end engine") else rng.uniform(3.5, 7.0), 2)


def _group(kind: str, engines: Sequence[str], services: Sequence[str]) -> list[str]:
    if kind in ENGINE_KINDS:
        return list(engines)
    if kind in SERVICE_KINDS:
        return list(services)
    return ["etcd"] if kind in ETCD_KINDS else ["machine"]
