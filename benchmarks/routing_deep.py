"""What bounds cache_aware on the deep tree of ``routing_sim.py``: the same simulation with one thing changed at a time.

    python benchmarks/routing_deep.py [--seeds 2] [--json RESULT.json]

as it is     four instances at full speed: the whole run lasts 5 simulated seconds, ten heartbeats
slowed       engines a quarter as fast, as in ``routing_live.py``: a heartbeat comes after a quarter of the work
heartbeat    full speed, heartbeats four times as often
longer       full speed, four times as many questions over the same tree: less of the run is its cold start
big caches   full speed, four times the blocks in every instance: nothing is ever displaced
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import routing_sim as sim
from benchmarks.environment import describe
from benchmarks.routing_sim import NodeSpec, load_policy, run_prefix, slowed

BEAT_S = sim.BEAT_S


def measure(specs: Sequence[NodeSpec], seeds: int) -> dict[str, Any]:
    """Means over seeds of both policies, and their ratio."""
    found: dict[str, Any] = {}
    for name in ("round_robin", "cache_aware"):
        cells = [run_prefix(load_policy(name), "deep", specs, seed) for seed in range(seeds)]
        found[name] = {
            key: round(sum(cell[key] for cell in cells) / seeds, 4) for key in ("requests_per_s", "hit_rate")
        }
    ratio = found["cache_aware"]["requests_per_s"] / found["round_robin"]["requests_per_s"]
    return {**found, "over_round_robin": round(ratio, 3)}


def longer(rng: random.Random) -> list[list[list[int]]]:
    """The deep tree with four times as many questions."""
    talks = sim.deep(rng)
    prefixes = [turns[0][:-64] for turns in talks]
    return talks + [[prefix + sim.draw(rng, 64)] for prefix in prefixes * 3]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json")
    args = parser.parse_args()
    four = [NodeSpec()] * 4
    result: dict[str, Any] = {"environment": describe(), "seeds": args.seeds}
    result["as it is"] = measure(four, args.seeds)
    result["slowed"] = measure([NodeSpec(device=slowed(4.0))] * 4, args.seeds)
    sim.BEAT_S = BEAT_S / 4
    result["heartbeat"] = measure(four, args.seeds)
    sim.BEAT_S = BEAT_S
    result["big caches"] = measure([NodeSpec(num_blocks=16_000)] * 4, args.seeds)
    original, sim.WORKLOADS["deep"] = sim.WORKLOADS["deep"], longer
    result["longer"] = measure(four, args.seeds)
    sim.WORKLOADS["deep"] = original
    print(json.dumps(result, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
