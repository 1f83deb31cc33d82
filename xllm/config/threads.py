"""Which CPUs the threads of a step run on, and which are left to everything else. Pure: facts in, plan out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from xllm.config.machine_facts import CpuCore, MachineFacts
from xllm.errors import ConfigError

MIN_PINNED_CORES = 4
"""With fewer, the edge and the event loop need the cores of a step: a thread that cannot move waits behind them."""
MIN_RESERVING_CORES = 8
"""From here on one core in eight or less is left to the edge and the event loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadPlan:
    """CPUs by what runs on them; empty: wherever the system puts it."""

    process_cpus: tuple[int, ...] = ()
    """All of the engine process, its memory therefore near them: what ``cpu_set`` says."""
    step_cpus: tuple[int, ...] = ()
    """One per thread of a step, each pinned to its own."""
    other_cpus: tuple[int, ...] = ()
    """The engine's event loop and, in the process that started it, the edge."""


def choose_cores(machine: MachineFacts, cpu_set: str) -> tuple[CpuCore, ...]:
    """The cores that ``runner.cpu_set`` names, each with the CPUs that may be used of it, in order of their node.

    Raises:
        ConfigError: it is no list, or names CPUs or a node that this process may not use or that do not exist.
    """
    if cpu_set in ("auto", "off"):
        return machine.cores
    hint = "a list such as 0-7,16, or node:N; xllm doctor shows what this process may use"
    if cpu_set.startswith("node:"):
        node = cpu_set.removeprefix("node:")
        found = tuple(core for core in machine.cores if str(core.node) == node)
        if not found:
            raise ConfigError(f"cpu_set is {cpu_set}: this process may use no CPU of that node", hint=hint)
        return found
    wanted = parse_cpu_list(cpu_set)
    allowed = {cpu for core in machine.cores for cpu in core.cpus}
    if not wanted or not wanted <= allowed:
        missing = ",".join(map(str, sorted(wanted - allowed)))
        problem = f"this process may not use CPU {missing}" if wanted else "not a list of CPUs"
        raise ConfigError(f"cpu_set is {cpu_set!r}: {problem}", hint=hint)
    cut = (CpuCore(cpus=tuple(c for c in core.cpus if c in wanted), node=core.node) for core in machine.cores)
    return tuple(core for core in cut if core.cpus)


def parse_cpu_list(text: str) -> set[int]:
    """``0-3,8`` as numbers; empty when it is not of that form."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            return set()
        cpus |= set(range(int(first), int(last if dash else first) + 1))
    return cpus


def format_cpu_list(cpus: Sequence[int]) -> str:
    """The reverse of :func:`parse_cpu_list`."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def num_step_cores(cores: Sequence[CpuCore], num_cores: int) -> int:
    """Cores for the threads of a step, of those that may be used (at most ``num_cores``, the quota, at a time)."""
    usable = min(len(cores), num_cores) or num_cores
    return usable - 1 if usable >= MIN_RESERVING_CORES else usable


def plan_threads(
    cores: Sequence[CpuCore], *, cpu_set: str, num_threads: int, num_cores: int
) -> tuple[ThreadPlan, str]:
    """The plan, and why.

    Args:
        cores: of :func:`choose_cores`.
        num_threads: of a step.
        num_cores: how many cores the quota allows at a time.
    """
    is_said = cpu_set not in ("auto", "off")
    everything = tuple(cpu for core in cores for cpu in core.cpus)
    confined = ThreadPlan(process_cpus=everything if is_said else ())
    if cpu_set == "off":
        return ThreadPlan(), "not pinned: as said"
    if not cores:
        return confined, "not pinned: the system does not name its cores"
    if not is_said and len(cores) < MIN_PINNED_CORES:
        return confined, f"not pinned: the edge needs some of {len(cores)} core(s), too"
    if num_cores < len(cores) and not is_said:
        return confined, f"not pinned: a quota of {num_cores} core(s) on {len(cores)} may be used anywhere"
    full = num_step_cores(cores, len(cores))
    if num_threads < full:
        return confined, f"not pinned: {num_threads} thread(s) on {len(cores)} core(s) may move"
    # The first core is the one that takes interrupts on most machines: it is the one that is left out.
    firsts = [core.cpus[0] for core in cores[len(cores) - min(num_threads, len(cores)) :]]
    siblings = [cpu for core in cores for cpu in core.cpus[1:]]
    step_cpus = tuple((firsts + siblings)[:num_threads])
    if len(step_cpus) < num_threads:
        return confined, f"not pinned: {num_threads} threads are more than {len(everything)} CPUs"
    other = tuple(cpu for cpu in everything if cpu not in step_cpus)
    plan = ThreadPlan(process_cpus=confined.process_cpus, step_cpus=step_cpus, other_cpus=other)
    rest = f"the rest on CPUs {format_cpu_list(other)}" if other else "no CPU is left for the rest"
    return plan, f"a step's threads pinned to CPUs {format_cpu_list(step_cpus)}, {rest}"


def split_cores(machine: MachineFacts, num_parts: int) -> list[str]:
    """``cpu_set`` values that give engines of one machine cores of their own, those of one node together.

    Empty when there are fewer cores than engines, or the system does not name them.
    """
    cores = machine.cores
    if num_parts < 2 or len(cores) < num_parts or machine.num_cores < len(cores):
        return []
    bounds = [len(cores) * part // num_parts for part in range(num_parts + 1)]
    nodes = sorted({core.node for core in cores})
    groups = [[core for core in cores if core.node == node] for node in nodes]
    if num_parts == len(nodes):  # one engine per node, whatever their sizes
        parts = groups
    else:
        parts = [list(cores[a:b]) for a, b in pairwise(bounds)]
    return [format_cpu_list([cpu for core in part for cpu in core.cpus]) for part in parts]
