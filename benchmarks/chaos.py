"""Kills, freezes, cuts, slows and restarts everything of a cluster under load, and proves that nothing is lost.

    python benchmarks/chaos.py --seed 1 --minutes 10 [--json RESULT.json]

Four timed engines, two service replicas and a real etcd as processes of this machine, a fault proxy on every link.
Clients send streamed and whole requests (greedy, seeded, several choices, penalties, stops, log-probabilities) whose
one right answer is known. In the first half every kind of fault strikes alone, in turn, so that recovery times can
be read; in the second half they are drawn and overlap. Afterwards every engine must be empty. Status 1 when anything
was lost, changed, repeated or left behind, or when a replica doubted an engine that nothing had struck.

``--netns`` puts every engine into a network namespace, where links are pulled and packets vanish in the kernel, in
place of a proxy before it. ``--executor local`` runs the demo model, float32 and batch-invariant, in place of timed
engines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from tests.chaos.namespaces import why_not
from tests.chaos.run import ChaosOptions, format_report, run_chaos
from tests.chaos.schedule import KINDS, NETNS_KINDS, Fault, build_schedule
from tests.chaos.world import WorldOptions

START_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--executor", choices=("timed", "local"), default="timed")
    parser.add_argument("--netns", action="store_true", help="engines in network namespaces; needs root")
    parser.add_argument("--policy", default="round_robin")
    parser.add_argument("--kinds", help="only these faults, in turn; separated by commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="directory for the logs of all processes")
    args = parser.parse_args()
    environment = describe("--keep")
    print(json.dumps(environment))
    engines = [f"engine-{n}" for n in range(args.engines)]
    services = ["service-0", "service-1"]
    kinds = args.kinds.split(",") if args.kinds else None
    half_s = args.minutes * 30.0
    if args.netns:
        kinds = kinds or list(NETNS_KINDS)
        reason = why_not()
        if reason is not None:
            print(f"--netns: this machine grants no network namespaces: {reason}", file=sys.stderr)
            return 2
    drawn = [kind for kind, weight in KINDS.items() if weight]
    every = random.Random(args.seed).sample(drawn, len(drawn))
    lone = build_schedule(
        args.seed,
        half_s,
        engines=engines,
        services=services,
        alone=True,
        kinds=kinds or every,
        gap_s=(0.5, 1.5),
    )
    begins_s = max([half_s, *(fault.at_s + fault.lasts_s + 8.0 for fault in lone)])
    storm = build_schedule(args.seed + 1, half_s, engines=engines, services=services, kinds=kinds)
    shifted = [
        Fault(kind=f.kind, target=f.target, at_s=round(f.at_s + begins_s, 2), lasts_s=f.lasts_s)
        for f in storm
    ]
    options = ChaosOptions(
        seed=args.seed,
        faults=[*lone, *shifted],
        world=WorldOptions(
            num_engines=args.engines, executor=args.executor, policy=args.policy, netns=args.netns
        ),
        num_clients=args.clients,
        say=lambda text: print(text, flush=True),
    )
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run_chaos(directory, options))
    print(format_report(report))
    if args.json is not None:
        faults = report.pop("faults")
        head = json.dumps({"environment": environment, **report}, indent=1)[:-2]
        rows = ",\n".join("  " + json.dumps(row) for row in faults)
        args.json.write_text(f'{head},\n "faults": [\n{rows}\n ]\n}}\n')
    return 1 if report["problems"] or report["false_alarms"] else 0


if __name__ == "__main__":
    sys.exit(main())
