"""Sequence: one choice of one request on its way through the engine. The only data object that changes.

The token ranges of a sequence::

    |<------------------ len(token_ids) ------------------>|<- num_pending_samples ->|
    |<- prompt ->|<------------ output tokens ------------>|  ordered, not answered  |
    |<---- num_computed ---->|<-- num_inflight -->|<-- still to schedule (need) ---->|
      KV is there, certain      KV being written

Prefill and decode are not phases: a step hands out tokens until the computed catch up with the known ones, and
whoever reaches its last known token gets a sample.

INVARIANTS
- ``num_computed + num_inflight <= len(token_ids) + num_pending_samples``.
- Blocks cover at least ``num_computed + num_inflight`` tokens while RUNNING.
- Only the scheduler package changes a sequence (and the core appends sampled tokens through it).
"""

from __future__ import annotations

import enum
import math

from xllm.engine.cache.block_table import BlockTables
from xllm.types.ids import BlockHash, RowId, SeqId
from xllm.types.output import PositionLogprobs
from xllm.types.request import Request

Key = tuple[float, ...]
"""Place in an order: smaller runs first; the last number is unique."""


class SeqStatus(enum.Enum):
    """Where a sequence stands. RUNNING does not mean scheduled in this step."""

    WAITING = "waiting"
    LOADING = "loading"  # reserved: KV, media or embeddings are on their way
    RUNNING = "running"
    PAUSED = "paused"  # reserved: resident, but not in steps
    PREEMPTED = "preempted"
    FINISHED = "finished"


class Sequence:
    """See the module; times are the core's clock, in seconds."""

    __slots__ = (
        "admitted_s",
        "arrival",
        "arrival_s",
        "choice",
        "deadline_s",
        "due_s",
        "end_ids",
        "end_len",
        "first_token_s",
        "generation",
        "id",
        "key",
        "last_sample_step",
        "max_output_tokens",
        "num_cached_tokens",
        "num_computed",
        "num_emitted",
        "num_inflight",
        "num_pending_samples",
        "num_preemptions",
        "num_prompt",
        "num_ready",
        "predicted_ttft_s",
        "prompt_logprobs",
        "prompt_logprobs_sent",
        "queued_s",
        "request",
        "root_hash",
        "row",
        "row_known",
        "scheduled_step",
        "status",
        "stop_ids",
        "tables",
        "token_ids",
        "tpot_s",
        "waiting_for",
    )

    def __init__(
        self,
        *,
        seq_id: SeqId,
        request: Request,
        choice: int,
        arrival: int,
        now_s: float,
        max_output_tokens: int,
        tables: BlockTables,
        root_hash: BlockHash,
        key: Key = (),
    ) -> None:
        resumed = request.resumed_output_ids[choice] if request.resumed_output_ids else ()
        self.id = seq_id
        self.request = request
        self.choice = choice
        self.arrival = arrival
        self.key = key
        self.status = SeqStatus.WAITING
        self.waiting_for: frozenset[str] = frozenset()
        self.token_ids: list[int] = [*request.prompt_token_ids, *resumed]
        self.num_prompt = len(request.prompt_token_ids)
        self.num_emitted = len(resumed)
        self.num_ready = len(self.token_ids)
        self.max_output_tokens = max_output_tokens
        self.end_len = self.num_prompt + max_output_tokens
        """Tokens, prompt included, at which it has its length."""
        self.stop_ids = frozenset(request.sampling.stop_token_ids)
        ignored = request.sampling.ignore_eos
        self.end_ids = self.stop_ids if ignored else self.stop_ids.union(request.eos_token_ids)
        """Tokens that end it, once it may end."""
        self.num_computed = 0
        self.num_inflight = 0
        self.num_pending_samples = 0
        self.generation = 0
        self.num_preemptions = 0
        self.num_cached_tokens: int | None = None
        self.tables = tables
        self.root_hash = root_hash
        self.row: RowId | None = None
        self.row_known = False
        self.scheduled_step = -1
        self.last_sample_step = -1
        self.prompt_logprobs: list[PositionLogprobs] = []
        self.prompt_logprobs_sent = bool(resumed) or choice > 0 or request.sampling.prompt_logprobs is None
        self.arrival_s = now_s - request.age_s
        remaining = request.deadline_in_s
        self.deadline_s = None if remaining is None else now_s + remaining
        slo = request.slo
        first_s = math.inf if slo.ttft_ms is None else slo.ttft_ms / 1e3
        whole_s = math.inf if slo.ttlt_ms is None else slo.ttlt_ms / 1e3
        self.due_s = self.arrival_s + min(first_s, whole_s)
        """When the first token is wanted; the last one counts here too: nothing ends before it begins."""
        self.tpot_s = math.inf if slo.tpot_ms is None else slo.tpot_ms / 1e3
        self.predicted_ttft_s: float | None = None
        self.queued_s = now_s
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.id}:{self.choice} {self.status.value} computed={self.num_computed}"
            f"+{self.num_inflight} of {len(self.token_ids)}+{self.num_pending_samples})"
        )

    @property
    def num_output(self) -> int:
        """Output tokens known, those of earlier attempts included."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_scheduled(self) -> int:
        """Tokens whose KV is there or being written."""
        return self.num_computed + self.num_inflight

    @property
    def num_needed(self) -> int:
        """Tokens to schedule until the last known (or ordered) one; 0 when output ordered so far must end it."""
        known = len(self.token_ids) + self.num_pending_samples
        return known - self.num_computed - self.num_inflight if known < self.end_len else 0

    @property
    def is_finished(self) -> bool:
        """Whether the terminal output has been given."""
        return self.status is SeqStatus.FINISHED

    def forget_computed(self) -> None:
        """Nothing of it is in the cache any more; answers still on their way are ignored."""
        self.generation += 1
        self.num_computed = 0
        self.num_inflight = 0
        self.num_pending_samples = 0
        self.row_known = False
        if not self.prompt_logprobs_sent:
            self.prompt_logprobs.clear()

    def forget_inflight(self) -> None:
        """What is in flight does not count; the body gets the row anew."""
        self.generation += 1
        self.num_inflight = 0
        self.num_pending_samples = 0
        self.row_known = False
        self.tables.num_mentioned = [0] * len(self.tables.num_mentioned)
