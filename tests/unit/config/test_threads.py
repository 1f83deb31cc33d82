"""Who runs where: pure plans over made-up machines."""

from __future__ import annotations

import pytest

from xllm.config.machine_facts import CpuCore, MachineFacts
from xllm.config.threads import (
    choose_cores,
    format_cpu_list,
    num_step_cores,
    parse_cpu_list,
    plan_threads,
    split_cores,
)
from xllm.errors import ConfigError


def machine(num_cores: int, *, threads: int = 1, nodes: int = 1, quota: int | None = None) -> MachineFacts:
    """CPUs numbered as usual: first one of every core, then the siblings."""
    cores = tuple(
        CpuCore(cpus=tuple(c + num_cores * t for t in range(threads)), node=c * nodes // num_cores)
        for c in range(num_cores)
    )
    return MachineFacts(
        num_cores=quota or num_cores, cores=cores, memory_total_bytes=1, memory_available_bytes=1
    )


def plan(facts: MachineFacts, cpu_set: str = "auto", num_threads: int | None = None):  # type: ignore[no-untyped-def]
    cores = choose_cores(facts, cpu_set)
    threads = num_threads or num_step_cores(cores, facts.num_cores)
    found, reason = plan_threads(cores, cpu_set=cpu_set, num_threads=threads, num_cores=facts.num_cores)
    assert len(found.step_cpus) in (0, threads) and len(set(found.step_cpus)) == len(found.step_cpus)
    assert not set(found.step_cpus) & set(found.other_cpus)
    return found, reason


@pytest.mark.parametrize(
    "facts, step, other",
    [
        (machine(4), (0, 1, 2, 3), ()),
        (machine(4, threads=2), (0, 1, 2, 3), (4, 5, 6, 7)),
        (machine(8), (1, 2, 3, 4, 5, 6, 7), (0,)),
        (machine(8, threads=2), tuple(range(1, 8)), (0, *range(8, 16))),
    ],
)
def test_a_thread_per_core_and_the_rest_off_them(
    facts: MachineFacts, step: tuple[int, ...], other: tuple[int, ...]
) -> None:
    found, _ = plan(facts)
    assert found.step_cpus == step and set(found.other_cpus) == set(other) and not found.process_cpus


@pytest.mark.parametrize(
    "facts, num_threads, why",
    [
        (machine(2), None, "edge needs"),
        (machine(8, quota=3), None, "quota of 3"),
        (machine(8), 2, "may move"),
        (machine(4), 5, "more than 4"),
        (MachineFacts(num_cores=4, memory_total_bytes=1, memory_available_bytes=1), None, "does not name"),
    ],
)
def test_what_is_not_pinned_says_why(facts: MachineFacts, num_threads: int | None, why: str) -> None:
    found, reason = plan(facts, num_threads=num_threads)
    assert not found.step_cpus and not found.other_cpus and why in reason


def test_off_is_off() -> None:
    found, _ = plan(machine(16, threads=2), "off")
    assert (found.step_cpus, found.other_cpus, found.process_cpus) == ((), (), ())


def test_a_list_confines_the_process_and_is_used_fully() -> None:
    found, _ = plan(machine(2), "0,1")
    assert found.step_cpus == found.process_cpus == (0, 1)
    found, _ = plan(machine(4, threads=2), "2,6,3")
    assert (found.step_cpus, found.other_cpus) == ((2, 3), (6,)) and set(found.process_cpus) == {2, 3, 6}
    found, reason = plan(machine(8), "0-5", 2)
    assert not found.step_cpus and found.process_cpus == (0, 1, 2, 3, 4, 5) and "may move" in reason
    found, _ = plan(machine(4, threads=2), "0,4", 2)
    assert found.step_cpus == (0, 4), "siblings, when so many threads are wanted"


def test_a_node_is_its_cores() -> None:
    found, _ = plan(machine(8, threads=2, nodes=2), "node:1")
    assert found.step_cpus == (4, 5, 6, 7) and set(found.other_cpus) == {12, 13, 14, 15}


@pytest.mark.parametrize("text", ["5", "0-9", "node:1", "node:", "a", "1-", "0;1", "-1", "3-1"])
def test_what_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cpu_set"):
        choose_cores(machine(4), text)


@pytest.mark.parametrize("text", ["0", "0-3", "0,2-3,7", "1,3,5"])
def test_lists_read_as_they_are_written(text: str) -> None:
    assert format_cpu_list(sorted(parse_cpu_list(text))) == text


def test_engines_of_one_machine_get_cores_of_their_own() -> None:
    assert split_cores(machine(8, threads=2, nodes=2), 2) == ["0-3,8-11", "4-7,12-15"]
    assert split_cores(machine(5), 2) == ["0-1", "2-4"]
    assert split_cores(machine(2), 2) == ["0", "1"]
    parts = [parse_cpu_list(part) for part in split_cores(machine(8, nodes=2), 3)]
    assert sorted(cpu for part in parts for cpu in part) == list(range(8))
    assert (
        split_cores(machine(2), 3) == [] == split_cores(machine(8), 1) == split_cores(machine(8, quota=4), 2)
    )
