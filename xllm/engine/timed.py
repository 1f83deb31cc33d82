"""The timed executor: production brain and server, no model. A step lasts what the performance model says.

Tokens are a hash of (everything before, seed, choice): the same stream whatever the batch, the resume point or the
instance, so lost, doubled or misplaced tokens show. With penalties the number of output tokens is hashed, too: tokens
that were taken for prompt where they are output would be penalised wrongly, and show. Log-probabilities are a function
of (token, position). The same model of a step runs behind a thread (real time) and in the simulator (manual clock).

INVARIANTS
- A row's hash state covers exactly its token history.
- A step reads only what NewRow and BatchRow said; a row that starts past its history fails the step.
"""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from collections.abc import Callable

from xllm.config.resolved import ResolvedEngineConfig
from xllm.engine.executor.facts import ExecutorFacts
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.executor.watchdog import Watchdog
from xllm.errors import InternalError, InvalidRequest
from xllm.perf.step_time import StepTimeProfile, load_profile, shape_of
from xllm.types.batch import Batch, BatchResult, BatchRow, NewRow, RowError, StepFacts, StepMask
from xllm.types.output import OutputError, PositionLogprobs, TokenLogprob
from xllm.types.request import Request

_MASK_TRIES = 64


class TimedRow:
    """One row: its identity and the running hash of its history."""

    __slots__ = ("hash", "length", "new")

    def __init__(self, new: NewRow) -> None:
        self.new = new
        self.length = 0
        key = f"{new.request.seed}:{new.choice}".encode()
        self.hash = hashlib.blake2b(digest_size=8, key=key)
        self.append(new.token_ids)

    def append(self, token_ids: tuple[int, ...]) -> None:
        """More history."""
        self.hash.update(array("I", token_ids).tobytes())
        self.length += len(token_ids)

    def next_token(self, vocab_size: int, attempt: int = 0) -> int:
        """The token after the history; ``attempt`` counts refusals by a mask."""
        request, state = self.new.request, self.hash
        salt = b"mask%d" % attempt if attempt else b""
        if request.sampling.needs_penalties:
            salt += b"output%d" % (self.length - len(request.prompt_token_ids))
        if salt:
            state = state.copy()
            state.update(salt)
        return int.from_bytes(state.digest(), "little") % vocab_size


class TimedRunner:
    """Runs steps without a model; ``duration_s`` and ``answer`` are what the simulator uses."""

    def __init__(
        self,
        profile: StepTimeProfile,
        *,
        vocab_size: int,
        num_layers: int,
        output_length: Callable[[Request, int], int] | None = None,
    ) -> None:
        """``output_length`` (request, choice) ends a choice with end-of-sequence there; the brain never sees it."""
        self.profile = profile
        self._output_length = output_length
        self.vocab_size = vocab_size
        self._num_layers = max(num_layers, 1)
        self._rows: dict[int, TimedRow] = {}
        self._layers_done = 0
        self._interrupted = threading.Event()
        self._interrupt_step = -1

    def prepare_thread(self) -> None:
        """Nothing to prepare."""

    def tend(self) -> bool:
        """Nothing to tend."""
        return False

    @property
    def layers_done(self) -> int:
        """Layers finished since start."""
        return self._layers_done

    def interrupt(self, step: int) -> None:
        """Give up the step if it is still running and interruptible."""
        self._interrupt_step = step
        self._interrupted.set()

    def duration_s(self, batch: Batch) -> float:
        """How long the step lasts."""
        return self.profile.estimate(shape_of((r.start, r.num_new_tokens) for r in batch.rows)).time_s

    def run(self, batch: Batch, take_mask: Callable[[], StepMask]) -> BatchResult:
        """One step in real time, layer by layer so that progress shows and interruption can act."""
        begin_s = time.monotonic()
        duration_s = self.duration_s(batch)
        for layer in range(1, self._num_layers + 1):
            remaining_s = begin_s + duration_s * layer / self._num_layers - time.monotonic()
            if remaining_s > 0:
                self._interrupted.wait(remaining_s)
            if self._interrupted.is_set():
                self._interrupted.clear()
                if batch.interruptible and self._interrupt_step == batch.step:
                    self.apply_orders(batch)
                    return BatchResult(step=batch.step, status="interrupted", epoch=batch.epoch)
            self._layers_done += 1
        mask = take_mask() if batch.has_mask else None
        return self.answer(batch, mask, duration_s)

    def apply_orders(self, batch: Batch) -> None:
        """Frees and new rows; copies and block tables mean nothing here."""
        for row in batch.freed_rows:
            self._rows.pop(row, None)
        for new in batch.new_rows:
            self._rows[new.row] = TimedRow(new)

    def answer(self, batch: Batch, mask: StepMask | None, duration_s: float) -> BatchResult:
        """The result of a step, at once."""
        self.apply_orders(batch)
        masks = _MaskRows(mask)
        tokens: list[tuple[int, ...]] = []
        errors: list[RowError] = []
        logprobs: list[tuple[PositionLogprobs, ...] | None] = []
        prompt_logprobs: list[tuple[PositionLogprobs, ...] | None] = []
        logit_row, has_logprobs, has_prompt_logprobs = 0, False, False
        for index, order in enumerate(batch.rows):
            row = self._row(order)
            sampled: tuple[int, ...] = ()
            if order.num_logits:
                token = self._sample(row, masks, logit_row)
                if token is None:
                    message = "the mask of the request forbids every token"
                    errors.append(RowError(index, OutputError(InvalidRequest.type_name, 400, message)))
                else:
                    row.append((token,))
                    sampled = (token,)
            logit_row += order.num_logits
            tokens.append(sampled)
            wants = row.new.request.sampling.logprobs
            logprobs.append(None if wants is None else self._logprobs(row, sampled, wants))
            has_logprobs |= wants is not None
            prompt_logprobs.append(self._prompt_logprobs(row, order))
            has_prompt_logprobs |= order.want_prompt_logprobs
        return BatchResult(
            step=batch.step,
            status="ok",
            tokens=tuple(tokens),
            logprobs=tuple(logprobs) if has_logprobs else (),
            prompt_logprobs=tuple(prompt_logprobs) if has_prompt_logprobs else (),
            row_errors=tuple(errors),
            facts=StepFacts(forward_s=duration_s, total_s=duration_s),
            epoch=batch.epoch,
        )

    def _row(self, order: BatchRow) -> TimedRow:
        row = self._rows.get(order.row)
        if row is None or order.start + order.num_new_tokens > row.length:
            held = "nothing" if row is None else f"{row.length} tokens"
            end = order.start + order.num_new_tokens
            raise InternalError(f"row {order.row} is ordered up to token {end} but holds {held}")
        return row

    def _sample(self, row: TimedRow, masks: _MaskRows, logit_row: int) -> int | None:
        not_yet: tuple[int, ...] = ()
        if self._output_length is not None:
            request = row.new.request
            not_yet = request.eos_token_ids
            num_output = row.length - len(request.prompt_token_ids) + 1
            if num_output >= self._output_length(request, row.new.choice):
                return request.eos_token_ids[0]
        for attempt in range(_MASK_TRIES):
            token = row.next_token(self.vocab_size, attempt)
            if token not in not_yet and masks.allows(logit_row, token):
                return token
        return masks.first_allowed(logit_row)

    def _logprobs(self, row: TimedRow, sampled: tuple[int, ...], wants: int) -> tuple[PositionLogprobs, ...]:
        begin = row.length - len(sampled)
        return tuple(
            timed_logprobs(token, begin + i, wants, self.vocab_size) for i, token in enumerate(sampled)
        )

    def _prompt_logprobs(self, row: TimedRow, order: BatchRow) -> tuple[PositionLogprobs, ...] | None:
        if not order.want_prompt_logprobs:
            return None
        prompt = row.new.request.prompt_token_ids
        wants = row.new.request.sampling.prompt_logprobs or 0
        end = min(order.start + order.num_new_tokens, len(prompt) - 1)
        return tuple(
            timed_logprobs(prompt[i + 1], i + 1, wants, self.vocab_size) for i in range(order.start, end)
        )


class _MaskRows:
    """The bits of a step's mask by logit row."""

    __slots__ = ("_bits", "_index", "_width")

    def __init__(self, mask: StepMask | None) -> None:
        self._index = {} if mask is None else {row: i for i, row in enumerate(mask.logit_rows)}
        self._bits = b"" if mask is None else mask.bits
        self._width = 0 if mask is None else (mask.vocab_size + 31) // 32 * 4

    def allows(self, logit_row: int, token: int) -> bool:
        """Whether the token may be sampled in the row."""
        index = self._index.get(logit_row)
        return index is None or bool(self._bits[index * self._width + (token >> 3)] >> (token & 7) & 1)

    def first_allowed(self, logit_row: int) -> int | None:
        """The lowest id a masked row allows."""
        start = self._index[logit_row] * self._width
        for offset, byte in enumerate(self._bits[start : start + self._width]):
            if byte:
                return offset * 8 + (byte & -byte).bit_length() - 1
        return None


def timed_logprobs(token: int, position: int, num_top: int, vocab_size: int) -> PositionLogprobs:
    """What stands in for log-probabilities where there are no logits: a function of the token and its position.

    The token has rank 1 to 3, its neighbours the other ranks. Values are multiples of 1/1024: exact in every format.
    """
    mixed = (token * 2654435761 + position * 2246822519) & 0xFFFFFFFF  # Knuth's and xxHash's odd multipliers
    rank = 1 + (mixed >> 8) % min(3, vocab_size)
    logprob = -0.5 - (mixed >> 20) / 1024

    def at(place: int) -> TokenLogprob:
        return TokenLogprob((token + place - rank) % vocab_size, logprob + (rank - place) * 0.25, place)

    return PositionLogprobs(at(rank), tuple(at(place) for place in range(1, min(num_top, vocab_size) + 1)))


def build_timed_executor(
    resolved: ResolvedEngineConfig, *, profile: str, watchdog: Watchdog | None = None
) -> tuple[ThreadExecutor, ExecutorFacts]:
    """A timed executor and what the brain is built from; never loads torch. ConfigError for an unknown profile."""
    layout, spec = resolved.kv_layout, resolved.spec
    num_layers = sum(len(g.layers) for g in layout.groups)
    runner = TimedRunner(load_profile(profile), vocab_size=spec.vocab_size, num_layers=num_layers)
    facts = ExecutorFacts(
        layout=layout,
        num_blocks=resolved.num_blocks,
        vocab_size=spec.vocab_size,
        max_model_len=resolved.max_model_len,
        device_name=f"timed:{profile}",
        weights_bytes=0,
        kv_bytes=0,
        load_s=0.0,
    )
    return ThreadExecutor(runner, watchdog=watchdog, name="xllm-timed"), facts
