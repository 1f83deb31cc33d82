"""Scheduler: hands out a step's token budget.

Running sequences that need one token first, then, in the policy's order, running ones that need more and waiting ones
ordered before them, then the other waiting ones, until the token budget, the rows or the blocks are used up. A
sequence that cannot get blocks makes later ones give way; when there are none it sits the step out and keeps what it
has.

This file refuses features: an order is an OrderPolicy, the size of a chunk a StepBudget, admission an
AdmissionPolicy, memory the KVCache, victims :mod:`preemption`. Nothing here knows about logprobs, speculation,
grammars, transfers, images or time.

INVARIANTS
- A sequence is in exactly one of: waiting queue, forks (waiting for a sibling's prefill), running, finished.
- ``running`` is sorted by key; its sequences have a row each, nobody else has one.
- Sequences outside ``running`` hold blocks only as fresh forks.
- A lone sequence can always run: nothing waits for ever on memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from xllm.base.trace import DecisionTrace, NullTrace
from xllm.engine.cache.kv_cache import KVCache, PrefixHit, Promise
from xllm.engine.scheduler.admission.policy import AdmissionPolicy
from xllm.engine.scheduler.budget import FixedBudget, StepBudget
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.scheduler.order import ORDER_KEYS, OrderPolicy, StaticOrder
from xllm.engine.scheduler.preemption import choose_victim
from xllm.engine.scheduler.queue import WaitingQueue
from xllm.engine.scheduler.rows import RowTable
from xllm.engine.scheduler.sequence import Key, SeqStatus, Sequence
from xllm.perf.step_time import StepShape
from xllm.types.batch import Batch, BatchRow, BlockCopy, NewRow
from xllm.types.ids import SeqId, StepId


@dataclass(slots=True)
class ScheduledStep:
    """A Batch and whom it is about, kept until its result arrives."""

    batch: Batch
    seqs: list[Sequence]
    generations: list[int]
    promises: list[Promise]
    shape: StepShape | None = None
    """Where the step's time is to be learned."""


class Scheduler:
    """See the module."""

    def __init__(
        self,
        limits: SchedulerLimits,
        cache: KVCache,
        admission: AdmissionPolicy,
        trace: DecisionTrace | NullTrace,
        order: OrderPolicy | None = None,
        budget: StepBudget | None = None,
    ) -> None:
        self.limits = limits
        self.cache = cache
        self.order: OrderPolicy = order or StaticOrder(ORDER_KEYS["fcfs"])
        self.waiting = WaitingQueue()
        self.forks: dict[SeqId, list[Sequence]] = {}
        self.running: list[Sequence] = []
        self.rows = RowTable(limits.max_num_seqs)
        self.epoch = 0
        self.num_preemptions = 0
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self._main = cache.main_group
        self._admission = admission
        self._budget: StepBudget = budget or FixedBudget()
        self._trace = trace
        self._copies: list[BlockCopy] = []

    # -- a sequence comes and goes ----------------------------------------------------------------------------------

    def add(self, first: Sequence, siblings: list[Sequence], now_s: float) -> None:
        """Queue a request's first choice; its siblings wait for that one's prefill and then fork from it."""
        for seq in (first, *siblings):
            seq.key = self.order.key(seq, now_s)
        self.waiting.push(first)
        if siblings:
            self.forks[first.id] = siblings

    def finish(self, seq: Sequence, *, is_complete: bool) -> None:
        """The sequence is over: give back everything it holds, wherever it is.

        ``is_complete``: it ended by itself, so its output length says something about others.
        """
        if is_complete:
            self._admission.on_finish(seq)
        if seq.status is SeqStatus.RUNNING:
            self._leave_running(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        else:
            siblings = next(s for s in self.forks.values() if seq in s)
            siblings.remove(seq)
        self.cache.free(seq.tables)
        seq.status = SeqStatus.FINISHED
        self.release_forks(seq)

    def release_forks(self, parent: Sequence) -> None:
        """The parent's prefill is done (or the parent is over): its siblings may run, sharing what is computed."""
        for child in self.forks.pop(parent.id, ()):
            num_shared = parent.num_prompt - 1
            if not parent.is_finished and parent.num_computed >= num_shared > 0:
                fork = self.cache.try_fork(parent.tables, num_shared)
                if fork is not None:
                    child.tables, copies = fork
                    child.num_computed = num_shared
                    self._copies.extend(copies)
            child.num_cached_tokens = parent.num_cached_tokens
            self.waiting.push(child)

    def predicted_peak_blocks(self) -> int | None:
        """What the admission policy expects the running set to need at most."""
        return self._admission.predicted_peak_blocks(self.running, self.cache)

    def sequences(self) -> Iterator[Sequence]:
        """Every unfinished sequence."""
        yield from self.running
        yield from self.waiting
        for siblings in self.forks.values():
            yield from siblings

    # -- one step ---------------------------------------------------------------------------------------------------

    def schedule(self, step: StepId, now_s: float) -> ScheduledStep | None:
        """The next step, or None when nothing can run now."""
        if self.order.rank(self.waiting.values(), self.running, now_s):
            self.waiting.reorder()
            self.running.sort(key=_key_of)
        self._budget.begin(self.running)
        plan = _StepPlan(step, self.limits.max_num_batched_tokens, now_s)
        memory_is_short = self._schedule_running(plan)
        if not memory_is_short:
            self._schedule_waiting(plan)
        if not plan.rows:
            return None
        copies, self._copies = tuple(self._copies), []
        batch = Batch(
            step=step,
            rows=tuple(plan.rows),
            new_rows=tuple(plan.new_rows),
            freed_rows=self.rows.take_freed(),
            copies=copies,
            page_orders=self.cache.take_page_orders(),
            num_tokens=self.limits.max_num_batched_tokens - plan.budget,
            interruptible=all(s.request.offline for s in plan.seqs),
            epoch=self.epoch,
        )
        return ScheduledStep(batch, plan.seqs, [s.generation for s in plan.seqs], plan.promises)

    def _schedule_running(self, plan: _StepPlan) -> bool:
        """Place running sequences; True when one of them could not get blocks."""
        is_short = False
        while True:
            needs = [(s, s.num_needed) for s in self.running]
            ordered = [p for p in needs if p[1] == 1] + [p for p in needs if p[1] > 1]
            for seq, need in ordered:
                if seq.status is not SeqStatus.RUNNING:
                    continue  # gave way earlier in this loop
                if need > 1 and not is_short:
                    self._schedule_waiting(plan, before=seq.key)
                num_new = self._chunk(seq, seq.num_scheduled, need, plan)
                if num_new == 0:
                    continue
                if self._make_room(seq, seq.num_scheduled + num_new, plan):
                    self._place(seq, num_new, plan)
                else:
                    is_short = True
            # Everyone sits the step out and nothing is in flight: the last in order gives way, then it is tried again.
            if plan.rows or not is_short or any(s.num_inflight for s in self.running):
                return is_short
            self.preempt(self.running[-1], plan.now_s, because="nobody could grow")

    def _chunk(self, seq: Sequence, start: int, need: int, plan: _StepPlan) -> int:
        """How much of a need fits the step; without chunked prefill all of it or nothing."""
        if need == 1:
            return min(1, plan.budget)
        if not self.limits.enable_chunked_prefill:
            return need if need <= plan.budget else 0
        return self._budget.grant(seq, start, min(need, plan.budget)) if plan.budget else 0

    def _schedule_waiting(self, plan: _StepPlan, before: Key | None = None) -> None:
        """Admit waiting sequences in order, only those with a key below ``before`` where one is given."""
        while not plan.is_closed and plan.budget > 0 and len(self.running) < self.limits.max_num_seqs:
            seq = self.waiting.peek()
            if seq is None or (before is not None and seq.key >= before):
                return
            if not plan.has_round:
                plan.has_round = True
                self._admission.begin_round(self.running, self.cache)
            if not self._try_admit(seq, plan) and (self.running or not self.drop_fork_holds()):
                plan.is_closed = True

    def _try_admit(self, seq: Sequence, plan: _StepPlan) -> bool:
        cache = self.cache
        known = len(seq.token_ids)
        if seq.tables.num_blocks:  # a fork: its prefix is in place
            hit = cache.no_hit
            num_new = self._chunk(seq, seq.num_computed, known - seq.num_computed, plan)
            if num_new == 0:
                return False
            is_in = self._admission.may_admit(seq, hit) and cache.try_grow(
                seq.tables, seq.num_computed + num_new
            )
        else:
            if known // cache.block_size > len(seq.tables.hashes):
                cache.extend_hashes(seq.tables, seq.root_hash, seq.token_ids)
            num_known = known if seq.prompt_logprobs_sent else 0
            hit = cache.match(seq.tables, num_known, seq.root_hash, seq.token_ids)
            num_new = self._chunk(seq, hit.num_tokens, known - hit.num_tokens, plan)
            if num_new == 0:
                return False
            is_in = self._admission.may_admit(seq, hit) and self._take_blocks(seq, hit, num_new)
        if not is_in:
            self._hold_back(seq, hit, plan.step)
            return False
        self._admission.on_admit(seq)
        self.order.on_admit(seq, seq.num_computed)
        self.waiting.remove(seq)
        bisect.insort(self.running, seq, key=_key_of)
        seq.status = SeqStatus.RUNNING
        seq.waiting_for = frozenset()
        seq.row = self.rows.take()
        if seq.admitted_s is None:
            seq.admitted_s = plan.now_s
        self._trace.record(
            seq.request.id,
            "admitted",
            {
                "choice": seq.choice,
                "step": plan.step,
                "cached_tokens": seq.num_computed,
                "new_tokens": num_new,
                **self.cache.explain(seq.tables),
                "order": str(seq.key),
            },
        )
        self._place(seq, num_new, plan)
        return True

    def _take_blocks(self, seq: Sequence, hit: PrefixHit, num_new: int) -> bool:
        copies = self.cache.try_admit(seq.id, seq.tables, hit, hit.num_tokens + num_new)
        if copies is None:
            return False
        self._copies.extend(copies)
        seq.num_computed = hit.num_tokens
        if seq.num_cached_tokens is None:
            seq.num_cached_tokens = min(hit.num_tokens, seq.num_prompt)
        self.num_query_tokens += len(seq.token_ids)
        self.num_hit_tokens += hit.num_tokens
        return True

    def _hold_back(self, seq: Sequence, hit: PrefixHit, step: StepId) -> None:
        """Note once per wait why the first in the queue may not start."""
        if "memory" not in seq.waiting_for:
            seq.waiting_for = frozenset({"memory"})
            pool = self.cache.pools[self._main]
            fields = {
                "step": step,
                "for": "memory",
                "available_blocks": pool.num_available,
                "hit": hit.num_tokens,
            }
            self._trace.record(seq.request.id, "held back", fields)

    def _place(self, seq: Sequence, num_new: int, plan: _StepPlan) -> None:
        """Order ``num_new`` tokens of a running sequence whose blocks are there."""
        start, tables, known = seq.num_computed + seq.num_inflight, seq.tables, len(seq.token_ids)
        end = start + num_new
        size = self.cache.block_size
        if known // size > len(tables.hashes):
            self.cache.extend_hashes(tables, seq.root_hash, seq.token_ids)
        if end // size > tables.num_promised:
            plan.promises.extend(self.cache.promise(seq.id, tables, end))
        num_logits = int(end == known + seq.num_pending_samples)
        after = seq.last_sample_step if end > known else None
        assert seq.row is not None
        new_blocks: tuple[tuple[int, ...], ...] = ()
        if not seq.row_known:
            seq.row_known = True
            plan.new_rows.append(
                NewRow(
                    row=seq.row,
                    seq=seq.id,
                    request=seq.request,
                    choice=seq.choice,
                    token_ids=tuple(seq.token_ids),
                    block_tables=tables.take_new(),
                    range_id=tables.range_id,
                )
            )
        elif tables.num_mentioned[self._main] != len(tables.groups[self._main]):
            new_blocks = tables.take_new()
        plan.rows.append(
            BatchRow(seq.row, start, num_new, new_blocks, num_logits, not seq.prompt_logprobs_sent, after)
        )
        plan.seqs.append(seq)
        plan.budget -= num_new
        seq.scheduled_step = plan.step
        seq.num_inflight += num_new
        if num_new > 1:
            self._budget.on_placed(start, num_new)
        if num_logits:
            seq.num_pending_samples += num_logits
            seq.last_sample_step = plan.step
            self.order.on_sample(seq)

    # -- blocks run out ---------------------------------------------------------------------------------------------

    def _make_room(self, seq: Sequence, num_tokens: int, plan: _StepPlan) -> bool:
        """Blocks for ``num_tokens`` tokens of a running sequence, at the cost of later ones."""
        while not self.cache.try_grow(seq.tables, num_tokens):
            if self.drop_fork_holds():
                continue
            victim = choose_victim(
                self.running, for_seq=seq, step=plan.step, max_preemptions=self.limits.max_preemptions
            )
            if victim is None:
                return False
            self.preempt(victim, plan.now_s, because=seq.request.id)
        return True

    def drop_fork_holds(self) -> bool:
        """Waiting forks give their blocks back and will recompute; False when none holds any."""
        holders = [s for s in self.waiting if s.tables.num_blocks]
        for seq in holders:
            self.cache.free(seq.tables)
            seq.forget_computed()
        return bool(holders)

    def preempt(self, seq: Sequence, now_s: float, *, because: str) -> None:
        """Take a running sequence's row and blocks; it waits and recomputes (mostly from the prefix cache)."""
        self._leave_running(seq)
        self.cache.free(seq.tables)
        seq.forget_computed()
        seq.status = SeqStatus.PREEMPTED
        seq.num_preemptions += 1
        self.num_preemptions += 1
        seq.key = self.order.key(seq, now_s)
        self.waiting.push(seq)
        self._trace.record(seq.request.id, "preempted", {"choice": seq.choice, "by": because})

    def _leave_running(self, seq: Sequence) -> None:
        index = bisect.bisect_left(self.running, seq.key, key=_key_of)
        assert self.running[index] is seq
        del self.running[index]
        assert seq.row is not None
        self.rows.give_back(seq.row)
        seq.row = None
        seq.row_known = False


def _key_of(seq: Sequence) -> Key:
    return seq.key


class _StepPlan:
    """A step while it is being put together."""

    __slots__ = ("budget", "has_round", "is_closed", "new_rows", "now_s", "promises", "rows", "seqs", "step")

    def __init__(self, step: StepId, budget: int, now_s: float) -> None:
        self.step = step
        self.budget = budget
        self.now_s = now_s
        self.has_round = False
        self.is_closed = False
        self.rows: list[BatchRow] = []
        self.new_rows: list[NewRow] = []
        self.seqs: list[Sequence] = []
        self.promises: list[Promise] = []
