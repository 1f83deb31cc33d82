"""Exactly-once failover on timed engines under a manual clock: an instance dies at every token a stream has.

The token of a timed engine is a hash of everything before it, the seed and the choice, so a lost, repeated or misplaced
token changes everything after it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from tests.fakes.sim_cluster import SimCluster
from xllm.errors import CapacityError
from xllm.service.dispatch.commands import Deliver
from xllm.service.dispatch.retry import RetryLimits
from xllm.types.request import Request, SloBudgets
from xllm.types.sampling import SamplingParams

PROMPT = tuple(range(1, 12))
Break = Callable[[SimCluster, str], None]


def make(name: str = "r", *, n: int = 1, max_tokens: int = 9, seed: int = 5, **fields: Any) -> Request:
    params = {k: fields.pop(k) for k in list(fields) if k in SamplingParams.__struct_fields__}
    sampling = SamplingParams(n=n, max_tokens=max_tokens, temperature=1.0 if n > 1 else 0.0, **params)
    return Request(id=name, prompt_token_ids=PROMPT, seed=seed, sampling=sampling, **fields)


def facts(cluster: SimCluster, request: Request) -> list[Any]:
    """All a client can see of each choice: tokens, logprobs, end, counts."""
    seen: list[Any] = []
    for choice in range(request.sampling.n):
        mine = [o for o in cluster.outputs[request.id] if o.choice == choice]
        indices = [o.first_token_index + i for o in mine for i in range(len(o.token_ids))]
        assert indices == list(range(len(indices)))
        end = cluster.end(request.id, choice)
        assert end is mine[-1], "something followed the end"
        logprobs = [p for o in mine for p in o.logprobs or ()]
        usage = end.usage
        counts = usage and (usage.num_prompt_tokens, usage.num_output_tokens, usage.num_cached_tokens)
        told = [o.num_cached_tokens for o in mine if o.num_cached_tokens is not None]
        prompt_logprobs = [o.prompt_logprobs for o in mine if o.prompt_logprobs is not None]
        seen.append(
            (
                cluster.tokens(request.id, choice),
                logprobs,
                end.finish_reason,
                end.stop_reason,
                counts,
                told,
                prompt_logprobs,
            )
        )
    assert cluster.ended[request.id] == 1
    return seen


def undisturbed(request: Request) -> list[Any]:
    cluster = SimCluster(1)
    cluster.submit(request)
    cluster.run()
    return facts(cluster, request)


def break_after(cluster: SimCluster, num_delivers: int, breaks: Break) -> list[str]:
    """Break the holder of the request as soon as its reader has had ``num_delivers`` deliveries."""
    broken: list[str] = []

    def on_deliver(deliver: Deliver) -> None:
        nonlocal num_delivers
        num_delivers -= 1
        if num_delivers == 0 and not deliver.is_last:
            name = cluster.holder(deliver.request_id)
            broken.append(name)
            cluster.events.after(0.0, lambda: breaks(cluster, name))

    cluster.on_deliver = on_deliver
    return broken


def kill(cluster: SimCluster, name: str) -> None:
    cluster.kill(name)


def freeze(cluster: SimCluster, name: str, for_s: float = 0.004) -> None:
    cluster.freeze(name)
    cluster.events.after(for_s, lambda: cluster.thaw(name))


def join(cluster: SimCluster) -> None:
    """One more instance comes."""
    cluster.start_engine()
    cluster.carry_out(cluster.dispatch.retry_parked(now=True))


BREAKS = {"kill": kill, "freeze": freeze}
PLAIN = undisturbed(make(max_tokens=30, ignore_eos=True))[0][0]
CASES = {
    "greedy": make(),
    "seeded": make(seed=99, n=1),
    "two choices": make(n=2),
    "three choices, one stops early": make(n=3, max_tokens=12),
    "logprobs": make(n=2, logprobs=2, prompt_logprobs=1),
    "stop id": make(max_tokens=30, stop_token_ids=(PLAIN[7],)),
    "min tokens": make(max_tokens=10, min_tokens=8, stop_token_ids=(PLAIN[2],)),
    "a budget for the first token": make(slo=SloBudgets(ttft_ms=5000.0)),
}


def early_stop(request: Request) -> Request:
    """Choice 1 stops in the middle: the others are resumed without it."""
    token = undisturbed(request)[1][0][4]
    return structs.replace(request, sampling=structs.replace(request.sampling, stop_token_ids=(token,)))


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("case", CASES)
def test_the_stream_is_that_of_an_undisturbed_run_wherever_an_instance_breaks(case: str, how: str) -> None:
    request = CASES[case] if "stops early" not in case else early_stop(CASES[case])
    expected = undisturbed(request)
    num_resumed = 0
    for index in range(1, 40):
        cluster = SimCluster(3)
        broken = break_after(cluster, index, BREAKS[how])
        cluster.submit(request)
        cluster.run()
        assert facts(cluster, request) == expected, index
        assert len(cluster.dispatch) == 0
        for node in cluster.nodes.values():
            assert node.is_dead or node.engine.core.num_unfinished == 0
        if not broken:
            break
        num_resumed += 1
        assert len(cluster.sent) == 2
        again = cluster.sent[-1].request
        assert any(again.resumed_output_ids) and again.attempt == 1
    assert num_resumed >= 4, "the mechanism did not act"


def test_choices_that_ended_are_not_run_again() -> None:
    request = early_stop(CASES["three choices, one stops early"])
    cluster = SimCluster(2)
    break_after(cluster, 7, kill)
    cluster.submit(request)
    cluster.run()
    again = cluster.sent[-1].request
    assert again.ended_choices == (1,) and again.open_choices == (0, 2)
    assert again.resumed_output_ids[1] == ()
    assert facts(cluster, request) == undisturbed(request)


def test_many_streams_survive_random_breaks() -> None:
    rng = random.Random(7)
    requests = [
        make(
            f"r{i}",
            n=rng.randint(1, 3),
            seed=i,
            max_tokens=rng.randint(1, 60),
            logprobs=rng.choice([None, 1]),
        )
        for i in range(40)
    ]
    expected = {request.id: undisturbed(request) for request in requests}
    cluster = SimCluster(4, RetryLimits(max_deaths=99, max_losses=99))
    for request in requests:
        cluster.events.at(rng.uniform(0, 0.2), lambda r=request: cluster.submit(r))  # type: ignore[misc]
    for index in range(16):
        how = rng.choice([kill, freeze])

        def strike(how: Break = how) -> None:
            able = [n.name for n in cluster.nodes.values() if not (n.is_dead or n.is_silent)]
            if how is kill:
                cluster.start_engine()
            how(cluster, rng.choice(able))

        cluster.events.at(0.02 + 0.04 * index, strike)
    cluster.run()
    assert cluster.dispatch.num_failovers > 20
    for request in requests:
        seen, told = facts(cluster, request), expected[request.id]
        # Cached tokens depend on who ran before; everything else must not.
        assert [s[:4] + s[6:] for s in seen] == [t[:4] + t[6:] for t in told], request.id
    assert not cluster.refused and len(cluster.dispatch) == 0


def test_a_request_that_was_there_when_two_instances_died_is_refused() -> None:
    cluster = SimCluster(4)

    def always_kill(deliver: Deliver) -> None:
        if not deliver.is_last:
            name = cluster.holder("r")
            cluster.events.after(0.0, lambda: cluster.kill(name))

    cluster.on_deliver = always_kill
    cluster.submit(make(max_tokens=20))
    cluster.run()
    end = cluster.end("r")
    assert end.finish_reason == "error" and end.error is not None
    assert (end.error.type_name, end.error.status) == ("RequestGivenUp", 503) and not end.error.retryable
    assert "e0 and e1" in end.error.message and "hint: do not repeat it" in end.error.message
    assert sum(node.is_dead for node in cluster.nodes.values()) == 2


def test_instances_that_come_back_did_not_die() -> None:
    cluster = SimCluster(4)

    def always_freeze(deliver: Deliver) -> None:
        if not deliver.is_last:
            name = cluster.holder("r")
            cluster.events.after(0.0, lambda: freeze(cluster, name, 0.0005))

    cluster.on_deliver = always_freeze
    cluster.submit(make(max_tokens=6))
    cluster.run()
    assert facts(cluster, make(max_tokens=6)) == undisturbed(make(max_tokens=6))
    assert len(cluster.sent) == 6


def test_without_another_instance_a_request_waits_for_one_and_goes_on() -> None:
    cluster = SimCluster(1)
    break_after(cluster, 3, kill)
    cluster.submit(make())
    cluster.events.at(2.0, lambda: join(cluster))
    cluster.run()
    assert facts(cluster, make()) == undisturbed(make())


def test_the_wait_for_an_instance_is_bounded() -> None:
    cluster = SimCluster(1, RetryLimits(max_wait_s=3.0))
    break_after(cluster, 3, kill)
    cluster.submit(make())
    cluster.run()
    end = cluster.end("r")
    assert end.finish_reason == "error" and end.error is not None and "killed" in end.error.message
    assert 3.0 <= cluster.events.clock.now() < 5.0
    assert cluster.tokens("r") == undisturbed(make())[0][0][:3]


def test_a_death_before_the_first_token_or_before_the_answer_to_submit() -> None:
    for delay_s in (0.0, 0.001, 0.012):
        cluster = SimCluster(2)
        cluster.submit(make())
        cluster.events.at(delay_s, lambda c=cluster: c.kill("e0"))  # type: ignore[misc]
        cluster.run()
        assert facts(cluster, make()) == undisturbed(make())
        assert cluster.accepted == ["r"]


def test_a_choice_that_was_stopped_when_its_instance_died_is_over() -> None:
    cluster = SimCluster(2)
    cluster.submit(make(n=2))

    def stop_then_kill() -> None:
        cluster.nodes["e0"].is_dead = True  # the abort does not arrive
        cluster.carry_out(cluster.dispatch.abort("r", 0, "stop"))
        cluster.kill("e0")

    cluster.events.at(0.015, stop_then_kill)
    cluster.run()
    assert cluster.end("r", 0).finish_reason == "stop"
    assert cluster.sent[-1].request.ended_choices == (0,)
    assert cluster.tokens("r", 1) == undisturbed(make(n=2))[1][0]


def test_a_full_instance_is_not_the_only_one() -> None:
    cluster = SimCluster(2)
    cluster.submit(make())
    commands = cluster.dispatch.on_refused("r", 0, CapacityError("full"))
    cluster.events = type(cluster.events)()  # nothing of the first attempt happens
    assert [c.instance for c in commands if hasattr(c, "instance")] == ["e1"]
    commands = cluster.dispatch.on_refused("r", 1, full := CapacityError("full too"))
    (refuse,) = commands
    assert refuse.error is full  # type: ignore[union-attr]


def test_deadlines_hold_over_attempts() -> None:
    cluster = SimCluster(1, RetryLimits(max_wait_s=100.0))
    break_after(cluster, 3, kill)
    cluster.submit(make(deadline_in_s=5.0, max_tokens=200))
    cluster.events.at(2.0, lambda: join(cluster))
    cluster.run()
    again = cluster.sent[-1].request
    assert again.deadline_in_s == pytest.approx(3.0, abs=0.1) and again.age_s == pytest.approx(2.0, abs=0.1)


def drain(cluster: SimCluster, name: str) -> None:
    """Its requests are to go on elsewhere; the service asks again and again, as with every heartbeat."""
    if not cluster.nodes[name].is_dead:
        cluster.draining.add(name)
        cluster.carry_out(cluster.dispatch.migrate(name))
        if cluster.dispatch.num_inflight(name):
            cluster.events.after(0.01, lambda: drain(cluster, name))


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_stream_is_that_of_an_undisturbed_run_wherever_its_instance_is_drained(
    case: str, offline: bool
) -> None:
    request = CASES[case] if "stops early" not in case else early_stop(CASES[case])
    request = structs.replace(request, offline=offline)
    expected = undisturbed(request)
    num_migrated = 0
    for index in range(1, 40):
        cluster = SimCluster(3)
        broken = break_after(cluster, index, drain)
        cluster.submit(request)
        cluster.run()
        assert facts(cluster, request) == expected, index
        assert len(cluster.dispatch) == 0 and cluster.dispatch.num_failovers == 0
        assert all(node.engine.core.num_unfinished == 0 for node in cluster.nodes.values())
        if not broken:
            break
        num_migrated += cluster.dispatch.num_migrated
    assert num_migrated >= 4, "the mechanism did not act"


def test_a_request_that_was_migrated_many_times_has_lost_nothing_of_its_budget() -> None:
    cluster = SimCluster(3, RetryLimits(max_losses=0, max_deaths=1))
    rests: list[str] = []

    def drain_its_instance(deliver: Deliver) -> None:
        if not deliver.is_last:
            name = cluster.holder("r")
            cluster.draining.clear()
            rests.append(name)
            cluster.events.after(0.0, lambda: drain(cluster, name))

    cluster.on_deliver = drain_its_instance
    cluster.submit(make(max_tokens=20))
    cluster.run()
    assert facts(cluster, make(max_tokens=20)) == undisturbed(make(max_tokens=20))
    assert cluster.dispatch.num_migrated > 10 and len(set(rests)) > 1


def test_a_request_that_nobody_else_takes_stays_where_it_is() -> None:
    alone = SimCluster(1)
    full = SimCluster(2)
    full.nodes["e1"].refuses = CapacityError("full")
    for cluster in (alone, full):
        break_after(cluster, 2, drain)
        cluster.submit(make(max_tokens=20))
        cluster.run()
        assert facts(cluster, make(max_tokens=20)) == undisturbed(make(max_tokens=20))
        assert cluster.dispatch.num_migrated == 0
    assert len(full.sent) > 2, "it was not offered again"


@pytest.mark.parametrize("who", ["the old one dies", "the new one dies", "the client leaves"])
def test_what_happens_between_an_offer_and_its_answer_breaks_no_stream(who: str) -> None:
    request = make(n=2, max_tokens=12)
    for index in range(1, 12):
        cluster = SimCluster(3)

        def offer_and_break(cluster: SimCluster, name: str) -> None:
            cluster.carry_out(cluster.dispatch.migrate(name))
            (offered,) = (sent.instance for sent in cluster.sent[1:])
            if who == "the old one dies":
                cluster.kill(name)
            elif who == "the new one dies":
                cluster.kill(offered)
            else:
                cluster.carry_out(cluster.dispatch.abort("r", None, "abort"))

        broken = break_after(cluster, index, offer_and_break)
        cluster.submit(request)
        cluster.run()
        assert len(cluster.dispatch) == 0
        if who == "the client leaves" and broken:
            assert {cluster.end("r", choice).finish_reason for choice in range(2)} == {"abort"}
        else:
            assert facts(cluster, request) == undisturbed(request), index
        assert all(node.is_dead or node.engine.core.num_unfinished == 0 for node in cluster.nodes.values())


def test_many_streams_go_on_while_instances_are_drained_and_killed_at_random() -> None:
    rng = random.Random(11)
    requests = [
        make(f"r{i}", n=rng.randint(1, 3), seed=i, max_tokens=rng.randint(1, 60), offline=rng.random() < 0.3)
        for i in range(40)
    ]
    expected = {request.id: undisturbed(request) for request in requests}
    cluster = SimCluster(4, RetryLimits(max_deaths=99, max_losses=99))
    for request in requests:
        cluster.events.at(rng.uniform(0, 0.2), lambda r=request: cluster.submit(r))  # type: ignore[misc]

    def strike() -> None:
        able = [n.name for n in cluster.nodes.values() if not n.is_dead and n.name not in cluster.draining]
        cluster.start_engine()
        rng.choice([drain, drain, kill])(cluster, rng.choice(able))

    for index in range(12):
        cluster.events.at(0.02 + 0.05 * index, strike)
    cluster.run()
    assert cluster.dispatch.num_migrated > 10 and cluster.dispatch.num_failovers > 5
    for request in requests:
        seen, told = facts(cluster, request), expected[request.id]
        assert [s[:4] + s[6:] for s in seen] == [t[:4] + t[6:] for t in told], request.id
    assert not cluster.refused and len(cluster.dispatch) == 0
