"""Kills, freezes, cuts, slows and restarts everything of a cluster under load, and proves that nothing is lost.

    python benchmarks/chaos.py --seed 1 --minutes 10 --policy cache_aware [--json RESULT.json]

Four timed engines, two service replicas and a real etcd as processes of this machine, a fault proxy on every link.
Clients send streamed and whole requests (greedy, seeded, several choices, penalties, stops, log-probabilities, all of
these at once) whose one right answer is known. First every kind of fault strikes once, alone: the next one waits until
the cluster is well again, so that recovery times can be read; then they are drawn and overlap. Afterwards every engine
must be empty. Status 1 when anything was lost, changed, repeated or left behind, when a kind never struck alone, or
when a replica doubted an engine that nothing had struck.

``--etcd-down-minutes 3.5`` runs another schedule: etcd is away all that time while engines are killed, frozen and cut.

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
from tests.chaos.schedule import KINDS, NETNS_KINDS, Fault, build_outage, build_schedule, build_turns
from tests.chaos.world import WorldOptions
from xllm.service.policy import POLICIES

TURN_S = 11.0
"""About what a fault that strikes alone takes, with the rest after it."""


def build_faults(
    args: argparse.Namespace, engines: list[str], services: list[str], kinds: list[str] | None
) -> tuple[list[Fault], list[Fault]]:
    """Those that strike in turn, alone, and those that strike at their times after them."""
    if args.etcd_down_minutes:
        return [], build_outage(args.seed, args.etcd_down_minutes * 60.0, engines=engines)
    drawn = [kind for kind, weight in KINDS.items() if weight]
    every = random.Random(args.seed).sample(drawn, len(drawn))
    turns = build_turns(args.seed, kinds or every, engines=engines, services=services)
    seconds = max(args.minutes * 30.0, args.minutes * 60.0 - TURN_S * len(turns))
    return turns, build_schedule(args.seed + 1, seconds, engines=engines, services=services, kinds=kinds)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="about; the storm has half of it at least"
    )
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--executor", choices=("timed", "local"), default="timed")
    parser.add_argument("--netns", action="store_true", help="engines in network namespaces; needs root")
    parser.add_argument("--policy", default="round_robin", choices=POLICIES.names(), help="of the replicas")
    parser.add_argument("--etcd-down-minutes", type=float, help="etcd is away that long; see above")
    parser.add_argument("--kinds", help="only these faults, in turn; separated by commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="directory for the logs of all processes")
    args = parser.parse_args()
    environment = describe("--keep")
    print(json.dumps(environment))
    engines = [f"engine-{n}" for n in range(args.engines)]
    services = ["service-0", "service-1"]
    kinds = args.kinds.split(",") if args.kinds else None
    if args.netns:
        kinds = kinds or list(NETNS_KINDS)
        reason = why_not()
        if reason is not None:
            print(f"--netns: this machine grants no network namespaces: {reason}", file=sys.stderr)
            return 2
    turns, storm = build_faults(args, engines, services, kinds)
    options = ChaosOptions(
        seed=args.seed,
        turns=turns,
        faults=storm,
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
