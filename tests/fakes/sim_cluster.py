"""Several production brains over timed runners on one event queue, under the production Dispatch; faults on demand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from msgspec import structs

from tests.fakes.known_speed import ONE_MS_PER_TOKEN
from xllm.base.trace import DecisionTrace
from xllm.engine.brain import build_brain
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.timed import TimedRunner
from xllm.errors import InstanceLost, XllmError
from xllm.service.dispatch.commands import Accepted, Command, Deliver, Refuse, Send, SendAbort
from xllm.service.dispatch.dispatch import Dispatch
from xllm.service.dispatch.retry import RetryLimits
from xllm.sim.engine import SimEngine
from xllm.sim.events import EventQueue
from xllm.types.kv_layout import build_attention_layout
from xllm.types.output import RequestOutput
from xllm.types.request import Request, Route

VOCAB = 1000
BLOCK = 4


class Node:
    """One engine and the wire to it."""

    def __init__(
        self, name: str, events: EventQueue, on_outputs: Callable[[str, list[RequestOutput]], None]
    ) -> None:
        self.name = name
        self.is_dead = False
        self.is_silent = False
        self.refuses: XllmError | None = None
        """What it answers to every new request."""
        self.held: list[list[RequestOutput]] = []
        self._on_outputs = on_outputs
        core = build_brain(
            layout=build_attention_layout(
                block_size=BLOCK, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32"
            ),
            num_blocks=[256],
            limits=SchedulerLimits(
                max_num_seqs=16, max_num_batched_tokens=64, max_model_len=256, watermark=0.0
            ),
            vocab_size=VOCAB,
            clock=events.clock,
        )
        runner = TimedRunner(ONE_MS_PER_TOKEN, vocab_size=VOCAB, num_layers=1)
        self.engine = SimEngine(core, runner, events, on_outputs=self._answer, check=True)

    def _answer(self, outputs: list[RequestOutput]) -> None:
        if self.is_dead:
            return
        if self.is_silent:
            self.held.append(outputs)
        else:
            self._on_outputs(self.name, outputs)


class SimCluster:
    """``submit``, ``events.run``, look at what was delivered; ``on_deliver`` may break something in between."""

    def __init__(self, num_engines: int, limits: RetryLimits | None = None) -> None:
        self.events = EventQueue()
        self.trace = DecisionTrace(self.events.clock, capacity=4096)
        self.dispatch = Dispatch(self.events.clock, self.trace, choose=self._choose, limits=limits)
        self.nodes: dict[str, Node] = {}
        self.draining: set[str] = set()
        """Instances that get no new requests."""
        for _ in range(num_engines):
            self.start_engine()
        self.outputs: dict[str, list[RequestOutput]] = defaultdict(list)
        self.ended: dict[str, int] = defaultdict(int)
        self.refused: dict[str, XllmError] = {}
        self.accepted: list[str] = []
        self.sent: list[Send] = []
        self.on_deliver: Callable[[Deliver], None] = lambda _deliver: None

    def start_engine(self) -> Node:
        node = Node(f"e{len(self.nodes)}", self.events, self._on_outputs)
        self.nodes[node.name] = node
        return node

    def submit(self, request: Request) -> None:
        route = self._choose(request, frozenset())
        assert route is not None
        self.carry_out(self.dispatch.begin(_routed(request, route)))

    def holder(self, request_id: str) -> str:
        """The instance its attempt runs on; "" while it is parked."""
        return self.dispatch._live[request_id].instance

    def kill(self, name: str) -> None:
        """kill -9: the process is gone and the connection breaks at once."""
        self.nodes[name].is_dead = True
        self.carry_out(self.dispatch.on_instance_lost(name, InstanceLost(f"{name} was killed")))

    def freeze(self, name: str) -> None:
        """It goes on but nothing of it arrives; the service gives up waiting."""
        self.nodes[name].is_silent = True
        self.carry_out(self.dispatch.on_instance_lost(name, InstanceLost(f"{name} is silent")))

    def thaw(self, name: str) -> None:
        """Everything it said meanwhile arrives, late."""
        node = self.nodes[name]
        node.is_silent = False
        held, node.held = node.held, []
        self.carry_out(self.dispatch.on_instance_back(name))
        for outputs in held:
            self._on_outputs(name, outputs)

    def run(self) -> None:
        """Until nothing happens any more; parked requests are ticked."""
        self.events.run()
        while self.dispatch.num_parked:
            self.events.clock.advance(self.dispatch.next_retry_in_s() or 0.0)
            self.carry_out(self.dispatch.tick())
            self.events.run()

    def tokens(self, request_id: str, choice: int = 0) -> list[int]:
        return [t for o in self.outputs[request_id] if o.choice == choice for t in o.token_ids]

    def end(self, request_id: str, choice: int = 0) -> RequestOutput:
        """The only terminal output of a choice."""
        (last,) = [o for o in self.outputs[request_id] if o.choice == choice and o.finish_reason]
        return last

    def carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self.sent.append(command)
                self.events.after(0.0, lambda c=command: self._send(c))  # type: ignore[misc]
            elif isinstance(command, SendAbort):
                self._abort(command)
            elif isinstance(command, Refuse):
                self.refused[command.request_id] = command.error
            elif isinstance(command, Accepted):
                self.accepted.append(command.request_id)
            else:
                self.outputs[command.request_id] += command.outputs
                self.ended[command.request_id] += command.is_last
                self.on_deliver(command)
        self.dispatch.check()

    def _choose(self, request: Request, avoid: frozenset[str]) -> Route | None:
        avoid = avoid | self.draining
        able = [n for n in self.nodes.values() if not (n.is_dead or n.is_silent or n.name in avoid)]
        if not able:
            return None
        chosen = min(able, key=lambda node: (self.dispatch.num_inflight(node.name), node.name))
        return Route(prefill=chosen.name, decode=chosen.name)

    def _send(self, command: Send) -> None:
        node, request = self.nodes[command.instance], command.request
        refusal: XllmError | None = InstanceLost(f"{node.name} is gone")
        if not node.is_dead:
            refusal = node.refuses or node.engine.submit(request)
        if node.is_silent:
            return
        if refusal is None:
            self.carry_out(self.dispatch.on_accepted(request.id, request.attempt))
        else:
            self.carry_out(self.dispatch.on_refused(request.id, request.attempt, refusal))

    def _abort(self, command: SendAbort) -> None:
        node = self.nodes[command.instance]
        if not node.is_dead:
            outputs = node.engine.core.abort(
                command.request_id, command.attempt, command.choice, command.reason
            )
            if outputs:
                self.events.after(0.0, lambda: node._answer(outputs))

    def _on_outputs(self, name: str, outputs: list[RequestOutput]) -> None:
        self.carry_out(self.dispatch.on_outputs(name, outputs))


def _routed(request: Request, route: Route) -> Request:
    return structs.replace(request, route=route)
