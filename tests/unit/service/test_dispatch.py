"""Dispatch under a manual clock: every request ends once, streams have no gap and no repetition."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest

from xllm.base.clock import ManualClock
from xllm.base.trace import DecisionTrace
from xllm.errors import CapacityError, DeadlineExceeded, InstanceLost, InvalidRequest
from xllm.service.dispatch.commands import Accepted, Command, Deliver, Refuse, Send, SendAbort
from xllm.service.dispatch.dispatch import DEADLINE_SLACK_S, Dispatch
from xllm.types.output import RequestOutput
from xllm.types.request import Request, Route
from xllm.types.sampling import SamplingParams


def request(name: str, *, n: int = 1, instance: str = "e0", **fields: Any) -> Request:
    return Request(
        id=name,
        prompt_token_ids=(1,),
        seed=0,
        sampling=SamplingParams(n=n),
        route=Route(prefill=instance, decode=instance),
        **fields,
    )


def out(name: str, first: int, ids: tuple[int, ...], finish: Any = None, choice: int = 0) -> RequestOutput:
    return RequestOutput(name, 0, choice, first, ids, finish_reason=finish)


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.dispatch = Dispatch(self.clock, DecisionTrace(self.clock, capacity=256))

    def begin(self, name: str = "r", *, accept: bool = True, **fields: Any) -> None:
        wanted = request(name, **fields)
        assert self.dispatch.begin(wanted) == [Send(wanted.route.prefill, wanted)]
        if accept:
            assert self.dispatch.on_accepted(name, 0) == [Accepted(name)]


def test_a_stream_is_delivered_as_it_came_and_then_forgotten() -> None:
    scene = Scene()
    scene.begin()
    first, last = out("r", 0, (5, 6)), out("r", 2, (7,), "stop")
    assert scene.dispatch.on_outputs("e0", [first]) == [Deliver("r", (first,), False)]
    assert scene.dispatch.on_outputs("e0", [last]) == [Deliver("r", (last,), True)]
    assert len(scene.dispatch) == 0


def test_one_frame_is_grouped_per_request_and_the_last_choice_ends_it() -> None:
    scene = Scene()
    scene.begin("a", n=2)
    scene.begin("b")
    frame = [out("a", 0, (1,), "stop"), out("b", 0, (2,)), out("a", 0, (3,), choice=1)]
    assert scene.dispatch.on_outputs("e0", frame) == [
        Deliver("a", (frame[0], frame[2]), False),
        Deliver("b", (frame[1],), False),
    ]
    end = out("a", 1, (), "length", choice=1)
    assert scene.dispatch.on_outputs("e0", [end]) == [Deliver("a", (end,), True)]


def test_repeated_tokens_are_cut() -> None:
    scene = Scene()
    scene.begin()
    scene.dispatch.on_outputs("e0", [out("r", 0, (1, 2, 3))])
    assert scene.dispatch.on_outputs("e0", [out("r", 0, (1, 2, 3))]) == []
    assert scene.dispatch.on_outputs("e0", [out("r", 1, (2, 3, 4))]) == [
        Deliver("r", (out("r", 3, (4,)),), False)
    ]


def test_a_gap_without_failover_is_an_error_and_the_engine_is_told() -> None:
    scene = Scene()
    scene.begin()
    scene.dispatch.on_outputs("e0", [out("r", 0, (1,))])
    abort, deliver = scene.dispatch.on_outputs("e0", [out("r", 2, (3,))])
    assert isinstance(abort, SendAbort) and abort.request_id == "r"
    assert isinstance(deliver, Deliver) and deliver.is_last
    assert deliver.outputs[0].finish_reason == "error"
    assert deliver.outputs[0].error is not None and deliver.outputs[0].error.retryable


@pytest.mark.parametrize("case", ["unknown", "other instance", "old attempt"])
def test_outputs_nobody_waits_for_stop_their_sender(case: str) -> None:
    scene = Scene()
    if case == "old attempt":
        scene.begin(attempt=1, accept=False)
    elif case == "other instance":
        scene.begin(instance="e1")
    commands = scene.dispatch.on_outputs("e0", [out("r", 0, (1,)), out("r", 1, (2,))])
    assert commands == [SendAbort("e0", "r", 0, None, "nobody waits for it")]
    assert scene.dispatch.on_outputs("e0", [out("r", 2, (), "abort")]) == []


def test_a_lost_instance_ends_its_requests_with_an_error_per_open_choice() -> None:
    scene = Scene()
    scene.begin("a", n=2)
    scene.begin("b", instance="e1")
    scene.dispatch.on_outputs("e0", [out("a", 0, (1,), "stop")])
    abort, deliver = scene.dispatch.on_instance_lost("e0", InstanceLost("gone"))
    assert isinstance(abort, SendAbort)
    assert isinstance(deliver, Deliver) and deliver.is_last
    assert [(o.choice, o.finish_reason) for o in deliver.outputs] == [(1, "error")]
    assert "b" in scene.dispatch and "a" not in scene.dispatch


def test_an_instance_lost_while_the_answer_was_on_its_way() -> None:
    scene = Scene()
    scene.begin("r", accept=False)
    gone = InstanceLost("gone")
    abort, refuse = scene.dispatch.on_instance_lost("e0", gone)
    assert isinstance(abort, SendAbort) and refuse == Refuse("r", gone)
    assert scene.dispatch.on_accepted("r", 0) == []
    assert scene.dispatch.on_refused("r", 0, gone) == []
    assert len(scene.dispatch) == 0


def test_a_refusal_leaves_nothing_and_doubt_is_followed_by_an_abort() -> None:
    scene = Scene()
    scene.begin("a", accept=False)
    full = CapacityError("full")
    assert scene.dispatch.on_refused("a", 0, full) == [Refuse("a", full)]
    scene.begin("b", accept=False)
    abort, refuse = scene.dispatch.on_refused("b", 0, DeadlineExceeded("no answer"))
    assert isinstance(abort, SendAbort) and isinstance(refuse, Refuse)
    assert len(scene.dispatch) == 0


def test_a_deadline_ends_a_request_whose_engine_is_silent() -> None:
    scene = Scene()
    scene.begin("a", deadline_in_s=10.0)
    scene.begin("b", deadline_in_s=100.0)
    scene.clock.advance(10.0 + DEADLINE_SLACK_S - 0.1)
    assert scene.dispatch.tick() == []
    scene.clock.advance(0.2)
    abort, deliver = scene.dispatch.tick()
    assert isinstance(abort, SendAbort) and isinstance(deliver, Deliver)
    assert deliver.outputs[0].finish_reason == "deadline"
    assert "b" in scene.dispatch


def test_an_id_in_use_is_refused() -> None:
    scene = Scene()
    scene.begin()
    with pytest.raises(InvalidRequest, match="in use"):
        scene.dispatch.begin(request("r"))


def test_deadlines_of_ended_requests_do_not_pile_up() -> None:
    scene = Scene()
    for index in range(5000):
        scene.begin(f"r{index}")
        scene.dispatch.on_outputs("e0", [out(f"r{index}", 0, (1,), "stop")])
    assert len(scene.dispatch._deadlines) < 2100
    scene.dispatch.check()


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_each_request_ends_once_and_its_tokens_count_up(seed: int) -> None:
    """Random events; tokens are their own index, so gaps and repetitions show in what was delivered."""
    rng = random.Random(seed)
    scene = Scene()
    dispatch, clock = scene.dispatch, scene.clock
    begun: dict[str, int] = {}
    refused: set[str] = set()
    pending: set[str] = set()
    ended: dict[str, int] = defaultdict(int)
    got: dict[tuple[str, int], list[int]] = defaultdict(list)
    finished: dict[tuple[str, int], int] = defaultdict(int)

    def carry_out(commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Refuse):
                refused.add(command.request_id)
            if isinstance(command, Deliver):
                ended[command.request_id] += command.is_last
                for output in command.outputs:
                    key = (output.request_id, output.choice)
                    assert not finished[key], "a choice went on after its end"
                    finished[key] += output.finish_reason is not None
                    got[key] += output.token_ids

    for step in range(3000):
        roll = rng.random()
        live = [name for name in begun if name in dispatch]
        if roll < 0.15:
            name = f"r{step}"
            begun[name] = rng.randint(1, 3)
            wanted = request(
                name, n=begun[name], instance=f"e{rng.randrange(3)}", deadline_in_s=rng.uniform(1, 50)
            )
            carry_out(dispatch.begin(wanted))
            pending.add(name)
        elif roll < 0.3 and pending:
            name = rng.choice(sorted(pending))
            pending.discard(name)
            if name in dispatch and rng.random() < 0.2:
                carry_out(dispatch.on_refused(name, 0, CapacityError("full")))
            else:
                carry_out(dispatch.on_accepted(name, 0))
        elif roll < 0.85 and live:
            name = rng.choice(live)
            choice = rng.randrange(begun[name])
            at = len(got[name, choice]) + rng.choice([0, 0, 0, 0, 0, -1, -2, 1])
            ids = tuple(range(max(at, 0), max(at, 0) + rng.randrange(4)))
            finish = rng.choice([None, None, None, "stop", "length", "abort", "error"])
            carry_out(
                dispatch.on_outputs(f"e{rng.randrange(3)}", [out(name, max(at, 0), ids, finish, choice)])
            )
        elif roll < 0.9 and live:
            carry_out(dispatch.abort(rng.choice(live), None, "abort"))
        elif roll < 0.93:
            carry_out(dispatch.on_instance_lost(f"e{rng.randrange(3)}", InstanceLost("gone")))
        else:
            clock.advance(rng.uniform(0, 3))
            carry_out(dispatch.tick())
        dispatch.check()
    carry_out(dispatch.fail_all(CapacityError("over", status=503)))
    assert len(dispatch) == 0
    assert all(ids == list(range(len(ids))) for ids in got.values())
    for name, num_choices in begun.items():
        if name in refused:
            assert ended[name] == 0, name
            continue
        assert ended[name] == 1, name
        assert [finished[name, choice] for choice in range(num_choices)] == [1] * num_choices
    assert sum(ended.values()) > 200
