"""What the brain calls and does not know: one Protocol and one Null object per hole.

The body (torch), the timed executor, fakes and the simulator stand behind the same ports. Every method is synchronous
and returns at once; whatever takes time answers later through ``EngineCore.on_result`` or ``on_io``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from xllm.errors import Unsupported
from xllm.types.batch import Batch, BatchResult, IoResult, StepMask, TransferOrder
from xllm.types.ids import StepId
from xllm.types.request import GrammarSpec, Request


class RankLost(Exception):
    """Raised by :meth:`Executor.submit` when workers are gone; ``ranks`` says which."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = tuple(ranks)
        super().__init__(f"worker ranks lost: {self.ranks}")


class Executor(Protocol):
    """Runs steps, in the order submitted, several in flight.

    ``start`` receives the function that is called with each BatchResult (and IoResult) as soon as it exists, from any
    thread. After ``close`` returns nothing is called any more. Every submitted step is answered exactly once. After a
    step of epoch e that is not ok, every later step of an epoch <= e is answered ``interrupted`` without being run.
    """

    def start(self, on_result: Callable[[BatchResult], None], on_io: Callable[[IoResult], None]) -> None:
        """Begin to answer; called once."""
        ...

    def submit(self, batch: Batch) -> None:
        """Queue a step; raises RankLost when nothing can run any more."""
        ...

    def supply_mask(self, step: StepId, mask: StepMask) -> None:
        """The late input of a step whose Batch said ``has_mask``."""
        ...

    def interrupt(self, step: StepId) -> None:
        """Give up an interruptible step between layers; it answers ``interrupted`` (or ``ok`` if it was quicker)."""

    @property
    def layers_done(self) -> int:
        """Layers finished since start; read by health from another thread."""

    def close(self) -> None:
        """Stop; steps still queued are answered ``failed``."""
        ...


class Connector(Protocol):
    """Reserved for PD and tiers: accepts transfer orders; outcomes arrive through ``on_io``."""

    def plan_load(self, request: Request) -> int:
        """Tokens of the request's prefix that could be loaded from outside."""

    def begin(self, orders: Sequence[TransferOrder]) -> None:
        """Start moving; returns at once."""
        ...


class NullConnector:
    """Nothing comes from outside."""

    def plan_load(self, request: Request) -> int:
        """No token can be loaded."""
        return 0

    def begin(self, orders: Sequence[TransferOrder]) -> None:
        """Orders cannot exist without a connector."""
        assert not orders, f"transfer orders without a connector: {orders}"


class GrammarState(Protocol):
    """Reserved for structured output: one sequence's automaton."""

    def allow(self, bits: bytearray) -> None:
        """Clear the bits of the tokens that may not come next."""

    def accept(self, token_ids: Sequence[int]) -> None:
        """The sequence grew by these tokens."""
        ...


class Grammar(Protocol):
    """Reserved for structured output: compiles a spec into a state."""

    def compile(self, spec: GrammarSpec) -> GrammarState:
        """A state at the start of the grammar; raises InvalidRequest for a bad one."""
        ...


class NullGrammar:
    """No grammar backend is loaded."""

    def compile(self, spec: GrammarSpec) -> GrammarState:
        """Refuse: nothing accepted is ignored."""
        raise Unsupported(
            f"structured output ({spec.kind}) is not built", hint="remove the field", param="grammar"
        )


class Proposer(Protocol):
    """Reserved for speculation: drafts the next tokens of a sequence."""

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Up to ``max_tokens`` drafts; empty when there is no good guess."""
        ...


class NullProposer:
    """No drafts."""

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """An empty draft."""
        return ()
