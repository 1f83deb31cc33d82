"""EngineCore: the brain of one engine, as a synchronous state machine.

Calls come in (requests, aborts, results, time), orders (Batch, StepMask) and outputs go out. No thread, no task, no
socket, no torch; time only through the clock. The same object runs in an engine process, in tests and in the simulator.

INVARIANTS
- Every accepted request ends in exactly one terminal output per choice; a refused one raises and leaves no trace.
- Results are taken in the order the steps were handed out.
- A sequence whose generation changed (preempted, rolled back) ignores answers from before.
- Whoever finishes or is aborted gives back row and blocks in the same call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from msgspec import structs

from xllm.base.clock import Clock
from xllm.base.trace import DecisionTrace, NullTrace
from xllm.engine.core.admission_check import check_request, max_output_tokens
from xllm.engine.core.deadlines import Deadlines
from xllm.engine.core.outputs import build_output, output_error
from xllm.engine.core.stop import check_stop
from xllm.engine.core.token_masks import TokenMask, try_token_mask
from xllm.engine.ports import Grammar
from xllm.engine.scheduler.early_rejection import EntryGate, OpenGate
from xllm.engine.scheduler.scheduler import ScheduledStep, Scheduler
from xllm.engine.scheduler.sequence import SeqStatus, Sequence
from xllm.errors import CapacityError, DeadlineExceeded, InternalError, InvalidRequest
from xllm.perf.step_time import shape_of
from xllm.perf.time_model import NullTimeModel, TimeModel
from xllm.types.batch import Batch, BatchResult, IoResult, StepMask
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.ids import RequestId, SeqId
from xllm.types.instance import LoadReport
from xllm.types.kv_event import KvEvent
from xllm.types.output import FinishReason, OutputError, RequestOutput
from xllm.types.request import Request


class EngineCore:
    """See the module."""

    def __init__(
        self,
        scheduler: Scheduler,
        grammar: Grammar,
        clock: Clock,
        trace: DecisionTrace | NullTrace,
        *,
        vocab_size: int,
        weight_revision: str = "",
        depth: int = 1,
        times: TimeModel | None = None,
        gate: EntryGate | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.times: TimeModel = times or NullTimeModel()
        self._gate: EntryGate = gate or OpenGate()
        self.cache = scheduler.cache
        self.limits = scheduler.limits
        self.vocab_size = vocab_size
        self.depth = depth
        self.is_draining = False
        self.step = 0
        self._grammar = grammar
        self._clock = clock
        self._trace = trace
        self._revision = weight_revision
        self._requests: dict[tuple[RequestId, int], list[Sequence]] = {}
        self._by_id: dict[SeqId, Sequence] = {}
        self._masks: dict[SeqId, TokenMask] = {}
        self._unmasked: deque[ScheduledStep] = deque()
        self._inflight: deque[tuple[ScheduledStep, float, float]] = deque()
        self._deadlines = Deadlines()
        self._next_seq = 0
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        self._step_time_s = 0.0
        self._step_overhead_s = 0.0
        self._answered_s = float("-inf")
        self.num_wasted_tokens = 0
        """Tokens ordered for sequences that turned out to be over: the price of planning ahead."""

    # -- requests ---------------------------------------------------------------------------------------------------

    @property
    def num_unfinished(self) -> int:
        """Sequences without a terminal output."""
        return len(self._by_id)

    @property
    def num_inflight_steps(self) -> int:
        """Steps handed out and not answered."""
        return len(self._inflight)

    def add(self, request: Request) -> None:
        """Queue a request, or raise RequestError / CapacityError; then nothing is owed."""
        key = (request.id, request.attempt)
        if key in self._requests:
            raise InvalidRequest(
                f"request {request.id} attempt {request.attempt} is already running", param="id"
            )
        if request.grammar is not None:
            self._grammar.compile(request.grammar)
        check_request(request, vocab_size=self.vocab_size, max_model_len=self.limits.max_model_len)
        self._check_capacity(request)
        root = root_hash(
            block_size=self.cache.block_size,
            weight_revision=self._revision,
            adapter=request.adapter,
            salt=request.cache_salt,
        )
        hashes = request.block_hashes
        if request.block_hash_size != self.cache.block_size:
            hashes = block_hashes(request.prompt_token_ids, block_size=self.cache.block_size, root=root)
        now_s = self._clock.now()
        seqs = [self._new_sequence(request, choice, root, hashes, now_s) for choice in request.open_choices]
        self._gate.check(seqs[0], self.scheduler, now_s)
        self._requests[key] = seqs
        mask = try_token_mask(request, self.vocab_size)
        for seq in seqs:
            self._by_id[seq.id] = seq
            self._deadlines.add(seq)
            if mask is not None:
                self._masks[seq.id] = mask
        self.scheduler.add(seqs[0], seqs[1:], now_s)
        self._num_prompt_tokens += len(request.prompt_token_ids)
        self._trace.record(
            request.id,
            "queued",
            {
                "attempt": request.attempt,
                "prompt_tokens": len(request.prompt_token_ids),
                "ahead": len(self.scheduler.waiting) - 1,
                "running": len(self.scheduler.running),
                "order": str(seqs[0].key),
                "predicted_ttft_s": seqs[0].predicted_ttft_s,
            },
        )

    def _check_capacity(self, request: Request) -> None:
        limits, waiting = self.limits, self.scheduler.waiting
        if self.is_draining:
            raise CapacityError(
                "the engine is draining", status=503, retry_after_s=5.0, hint="send it elsewhere"
            )
        if 0 < limits.max_num_queued_reqs <= len(waiting):
            raise CapacityError(
                f"{len(waiting)} requests are waiting, the limit is {limits.max_num_queued_reqs}",
                retry_after_s=self._predicted_wait_s(),
                hint="retry later, or raise --max-num-queued-reqs",
            )
        tokens = waiting.num_tokens + len(request.prompt_token_ids)
        if 0 < limits.max_num_queued_tokens < tokens and len(waiting):
            raise CapacityError(
                f"{tokens} prompt tokens would be waiting, the limit is {limits.max_num_queued_tokens}",
                retry_after_s=self._predicted_wait_s(),
                hint="retry later, or raise --max-num-queued-tokens",
            )

    def _predicted_wait_s(self) -> float:
        """When the queue will have moved: predicted, or its tokens over the budget at the last step's pace."""
        predicted_s = self._gate.predicted_wait_s(self.scheduler, self._clock.now())
        if predicted_s is not None:
            return max(1.0, predicted_s)
        steps = 1 + self.scheduler.waiting.num_tokens / self.limits.max_num_batched_tokens
        return max(1.0, steps * self._step_time_s)

    def _new_sequence(
        self, request: Request, choice: int, root: Any, hashes: Iterable[Any], now_s: float
    ) -> Sequence:
        self._next_seq += 1
        return Sequence(
            seq_id=self._next_seq,
            request=request,
            choice=choice,
            arrival=self._next_seq,
            now_s=now_s,
            max_output_tokens=max_output_tokens(request, self.limits.max_model_len),
            tables=self.cache.new_tables(hashes),
            root_hash=root,
        )

    def abort(
        self, request_id: RequestId, attempt: int = 0, choice: int | None = None, reason: str = "abort"
    ) -> list[RequestOutput]:
        """End one choice or all; unknown or finished ones are no error (the abort crossed the end)."""
        finish: FinishReason = "stop" if reason == "stop" else "abort"
        seqs = self._requests.get((request_id, attempt), ())
        chosen = [s for s in seqs if choice is None or s.choice == choice]
        return [self._finish(s, finish) for s in chosen if not s.is_finished]

    def abort_all(self, reason: str, error: OutputError | None = None) -> list[RequestOutput]:
        """End everything, with an error where one is given."""
        finish: FinishReason = "abort" if error is None else "error"
        return [self._finish(s, finish, error=error) for s in list(self._by_id.values())]

    def begin_drain(self) -> None:
        """Refuse new requests from now on; what is accepted goes on."""
        self.is_draining = True

    # -- steps ------------------------------------------------------------------------------------------------------

    def next_batch(self) -> Batch | None:
        """The next step to run; None when the pipeline is full or nothing can run."""
        if len(self._inflight) >= self.depth or not self._by_id:
            return None
        start_s = self._clock.now()
        step = self.scheduler.schedule(self.step + 1, start_s)
        if step is None:
            return None
        self.step += 1
        if self._masks and self._mask_rows(step):
            step.batch = structs.replace(step.batch, has_mask=True)
            self._unmasked.append(step)
        if self.times.wants_sample():
            step.shape = shape_of((r.start, r.num_new_tokens) for r in step.batch.rows)
        self._inflight.append((step, start_s, self._clock.now()))
        return step.batch

    def _mask_rows(self, step: ScheduledStep) -> list[tuple[int, Sequence, TokenMask]]:
        """(logit row, sequence, mask) of every row that samples under a mask."""
        out, logit_row = [], 0
        for seq, row in zip(step.seqs, step.batch.rows, strict=True):
            mask = self._masks.get(seq.id)
            if mask is not None and row.num_logits and mask.is_active(seq.num_output):
                out.append((logit_row, seq, mask))
            logit_row += row.num_logits
        return out

    def take_masks(self) -> list[StepMask]:
        """Masks that can be made now: those of the oldest step in flight, whose history is complete."""
        if not self._unmasked or not self._inflight or self._unmasked[0] is not self._inflight[0][0]:
            return []
        step = self._unmasked.popleft()
        rows = self._mask_rows(step)
        bits = b"".join(mask.row(seq).tobytes() for _, seq, mask in rows)
        logit_rows = tuple(r for r, _, _ in rows)
        return [StepMask(step=step.batch.step, vocab_size=self.vocab_size, logit_rows=logit_rows, bits=bits)]

    def on_result(self, result: BatchResult) -> list[RequestOutput]:
        """Take a step's outcome; returns what it means for the requests."""
        now_s = self._clock.now()
        step, planned_s, handed_s = self._inflight.popleft()
        if result.step != step.batch.step:
            raise InternalError(
                f"result of step {result.step} where step {step.batch.step} is the oldest in flight"
            )
        if self._unmasked and self._unmasked[0] is step:
            self._unmasked.popleft()  # it failed before it asked for its mask
        if result.status == "ok":
            outputs = self._accept(step, result, now_s)
        else:
            outputs = self._on_broken_step(step, result)
        facts = result.facts
        self._step_time_s = now_s - max(handed_s, self._answered_s)  # it began when the one before had ended
        self._answered_s = now_s
        if step.shape is not None and result.status == "ok":
            self.times.observe(step.shape, self._step_time_s)
        planning_s = (handed_s - planned_s) + (self._clock.now() - now_s)
        self._step_overhead_s = max(0.0, self._step_time_s - facts.forward_s - facts.sample_s) + planning_s
        return outputs

    def _accept(self, step: ScheduledStep, result: BatchResult, now_s: float) -> list[RequestOutput]:
        self.cache.commit(step.promises)
        outputs = []
        errors = {e.index: e.error for e in result.row_errors}
        all_logprobs = result.logprobs or None
        for index, (seq, row) in enumerate(zip(step.seqs, step.batch.rows, strict=True)):
            if seq.generation != step.generations[index] or seq.status is SeqStatus.FINISHED:
                continue
            seq.num_inflight -= row.num_new_tokens
            seq.num_computed += row.num_new_tokens
            self.cache.flip_state(seq.tables)
            if index in errors:
                outputs.append(self._finish(seq, "error", error=errors[index]))
                continue
            if row.want_prompt_logprobs and result.prompt_logprobs:
                seq.prompt_logprobs.extend(result.prompt_logprobs[index] or ())
            if row.num_logits:
                seq.num_pending_samples -= row.num_logits
                logprobs = all_logprobs[index] if all_logprobs is not None else None
                outputs.append(self._append(seq, result.tokens[index], logprobs, now_s))
        return outputs

    def _append(self, seq: Sequence, tokens: tuple[int, ...], logprobs: Any, now_s: float) -> RequestOutput:
        if seq.first_token_s is None:
            seq.first_token_s = now_s
            self._gate.on_first_token(seq, now_s)
            if seq.id in self.scheduler.forks:
                self.scheduler.release_forks(seq)
        for token in tokens:
            seq.token_ids.append(token)
            self._num_output_tokens += 1
            reason, stop_id = check_stop(seq)
            if reason is not None:
                return self._finish(seq, reason, stop_reason=stop_id, logprobs=logprobs)
        return build_output(seq, now_s, logprobs=logprobs)

    def _finish(
        self,
        seq: Sequence,
        reason: FinishReason,
        *,
        stop_reason: int | None = None,
        logprobs: Any = None,
        error: OutputError | None = None,
    ) -> RequestOutput:
        now_s = self._clock.now()
        num_wasted = seq.num_inflight
        self.num_wasted_tokens += num_wasted
        output = build_output(
            seq, now_s, logprobs=logprobs, finish_reason=reason, stop_reason=stop_reason, error=error
        )
        self._gate.on_finish(seq, now_s)
        self.scheduler.finish(seq, is_complete=reason in ("stop", "length"))
        del self._by_id[seq.id]
        self._masks.pop(seq.id, None)
        key = (seq.request.id, seq.request.attempt)
        if all(s.is_finished for s in self._requests[key]):
            del self._requests[key]
        self._trace.record(
            seq.request.id,
            "finished",
            {
                "choice": seq.choice,
                "reason": reason,
                "output_tokens": seq.num_output,
                "cached_tokens": seq.num_cached_tokens,
                "preemptions": seq.num_preemptions,
                "wasted_tokens": num_wasted,
            },
        )
        return output

    # -- a step did not succeed -------------------------------------------------------------------------------------

    def _on_broken_step(self, step: ScheduledStep, result: BatchResult) -> list[RequestOutput]:
        """A failed step ends its sequences, an interrupted one takes them back; later ones never happened."""
        victims = self._current(step)
        if step.batch.epoch == self.scheduler.epoch:
            self.scheduler.epoch += 1
            for later, _, _ in self._inflight:  # the body will answer them as interrupted: see Batch.epoch
                self._roll_back(later)
        self._roll_back(step)
        if result.status == "interrupted":
            return []
        error = result.error or OutputError("InternalError", 500, "the step failed without a reason")
        return [self._finish(s, "error", error=error) for s in victims]

    def _roll_back(self, step: ScheduledStep) -> None:
        """The step did not happen: its sequences go back to what is certain and run again."""
        victims = {s.id: s for s in self._current(step)}
        self._take_back(step, victims)
        step.promises = []
        for seq in victims.values():
            if seq.status is not SeqStatus.RUNNING:
                continue  # lost a copy
            if self.cache.rollback(seq.tables, seq.num_computed) < seq.num_computed:
                self.scheduler.preempt(seq, self._clock.now(), because="interrupted")
            else:
                seq.forget_inflight()
                self.cache.unpromise(seq.tables, seq.num_computed)
            self._trace.record(seq.request.id, "interrupted", {"choice": seq.choice, "step": step.batch.step})

    @staticmethod
    def _current(step: ScheduledStep) -> list[Sequence]:
        pairs = zip(step.seqs, step.generations, strict=True)
        return [s for s, generation in pairs if s.generation == generation and not s.is_finished]

    def _take_back(self, step: ScheduledStep, victims: dict[SeqId, Sequence]) -> None:
        """Retract what the step promised and, until nobody is left who relied on it, what those promised since.

        Copies ordered by the step are uncertain too: whoever holds their targets recomputes.
        """
        tainted = set(victims)
        suspects = list(step.promises)
        while suspects:
            tainted |= self.cache.retract(suspects)
            later = [p for other, _, _ in self._inflight for p in other.promises if p.seq in tainted]
            suspects = [p for p in later if self.cache.is_promised(p)]
        copied = {(c.group, c.target) for c in step.batch.copies}
        relied = tainted - set(victims)
        for seq in list(self.scheduler.running):
            held = ((g, b) for g, blocks in enumerate(seq.tables.groups) for b in blocks)
            if seq.id in relied or (copied and not copied.isdisjoint(held)):
                self.scheduler.preempt(seq, self._clock.now(), because="what it was built on was taken back")
        self.scheduler.drop_fork_holds()

    def on_io(self, result: IoResult) -> list[RequestOutput]:
        """Reserved for loads, saves, transfers and encodes, which end outside steps; nothing orders them yet."""
        raise InternalError(f"I/O result {result.id} that nobody ordered")

    # -- time, load, explanations -----------------------------------------------------------------------------------

    def tick(self) -> list[RequestOutput]:
        """End the requests whose deadline has passed."""
        due = self._deadlines.pop_due(self._clock.now())
        error = output_error(
            DeadlineExceeded(
                "the request's deadline passed", hint="raise the deadline or retry when load is lower"
            )
        )
        return [self._finish(s, "deadline", error=error) for s in due]

    def next_deadline_in_s(self) -> float | None:
        """Seconds until :meth:`tick` has something to do; None: no deadline is set."""
        at_s = self._deadlines.next_s()
        return None if at_s is None else max(0.0, at_s - self._clock.now())

    def load(self) -> LoadReport:
        """Load now."""
        scheduler, pool = self.scheduler, self.cache.pools[self.cache.main_group]
        num_forks = sum(len(f) for f in scheduler.forks.values())
        return LoadReport(
            step=self.step,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + num_forks,
            num_waiting_tokens=scheduler.waiting.num_tokens,
            num_running_tokens=sum(len(s.token_ids) for s in scheduler.running),
            blocks_total=pool.total,
            blocks_free=pool.num_free,
            blocks_used=pool.num_used,
            blocks_cached=pool.num_cached,
            blocks_leased=pool.num_leased,
            blocks_pinned=pool.num_pinned,
            num_preemptions=scheduler.num_preemptions,
            num_wasted_tokens=self.num_wasted_tokens,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            prefix_query_tokens=scheduler.num_query_tokens,
            prefix_hit_tokens=scheduler.num_hit_tokens,
            predicted_peak_blocks=scheduler.predicted_peak_blocks(),
            step_time_s=self._step_time_s,
            step_overhead_s=self._step_overhead_s,
            step_time_error=self.times.error,
            step_costs=self.times.costs(len(scheduler.running)),
            num_early_rejections=self._gate.num_rejected,
        )

    def take_kv_events(self) -> list[KvEvent]:
        """Cache changes since the last call."""
        return self.cache.take_events()

    def kv_snapshot(self) -> list[KvEvent]:
        """The whole committed prefix cache, as stored events."""
        return self.cache.snapshot()

    def reset_prefix_cache(self) -> int:
        """Forget all cached prefixes; returns the number of blocks concerned."""
        return self.cache.reset_prefixes()

    def explain(self, request_id: RequestId) -> list[dict[str, Any]]:
        """Decisions about a request still in the ring, oldest first."""
        return [{"age_s": d.age_s, "event": d.event, **d.fields} for d in self._trace.for_request(request_id)]

    def check(self) -> None:
        """Raise InternalError when an invariant broke; O(everything), for tests and idle times."""
        seqs = list(self.scheduler.sequences())
        self.cache.check(s.tables for s in seqs)
        if {s.id for s in seqs} != set(self._by_id) or len(seqs) != len(self._by_id):
            raise InternalError("a sequence is lost or queued twice")
        running = self.scheduler.running
        if [s.key for s in running] != sorted(s.key for s in running):
            raise InternalError("running sequences are out of order")
        rows = [s.row for s in running]
        if len(set(rows)) != len(rows) or None in rows or self.scheduler.rows.num_used != len(rows):
            raise InternalError(f"rows {rows} do not match {self.scheduler.rows.num_used} rows in use")
        for seq in seqs:
            if seq.num_scheduled > len(seq.token_ids) + seq.num_pending_samples:
                raise InternalError(f"{seq} computed more than it has")
            if seq.status is SeqStatus.RUNNING:
                covered = self.cache.num_tokens_covered(seq.tables)
                if covered < seq.num_scheduled:
                    raise InternalError(f"{seq} has blocks for {covered} tokens only")
            elif seq.row is not None or seq.num_inflight:
                raise InternalError(f"{seq} waits but has a row or tokens in flight")
