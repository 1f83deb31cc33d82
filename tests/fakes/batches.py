"""Hand-made Batches: a brain reduced to block counting, for tests of the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from xllm.types.batch import Batch, BatchRow, NewRow
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams


def make_request(request_id: str, prompt: Sequence[int], *, seed: int = 0, **sampling: Any) -> Request:
    """A request with the given prompt; keyword arguments are sampling parameters (greedy by default)."""
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    return Request(id=request_id, prompt_token_ids=tuple(prompt), seed=seed, sampling=params)


@dataclass
class HandBrain:
    """Plans steps one by one: every row gets as many tokens as asked, blocks are counted up and never freed."""

    block_size: int
    num_groups: int = 1
    step: int = -1
    _next_block: int = 0
    _tables: dict[int, list[int]] = field(default_factory=dict)
    _computed: dict[int, int] = field(default_factory=dict)
    _history: dict[int, int] = field(default_factory=dict)
    _new: list[NewRow] = field(default_factory=list)
    _freed: list[int] = field(default_factory=list)

    def introduce(
        self,
        row: int,
        request: Request,
        *,
        outputs: Sequence[int] = (),
        choice: int = 0,
        blocks: Sequence[int] = (),
    ) -> None:
        """The next step brings a new row; ``outputs`` are known output tokens (a resumed or preempted sequence)."""
        tokens = (*request.prompt_token_ids, *outputs)
        self._tables[row] = list(blocks)
        self._computed[row] = 0
        self._history[row] = len(tokens)
        new = NewRow(
            row=row, seq=row, request=request, choice=choice, token_ids=tokens, block_tables=(tuple(blocks),)
        )
        self._new.append(new)

    def free(self, row: int) -> None:
        """The next step frees a row."""
        self._freed.append(row)
        del self._tables[row], self._computed[row], self._history[row]

    def batch(self, plan: dict[int, int | None], **options: Any) -> Batch:
        """The next step: row -> number of new tokens (None = all that are left)."""
        self.step += 1
        rows = []
        wants = options.pop("want_prompt_logprobs", ())
        for row, wanted in plan.items():
            start, known = self._computed[row], self._history[row]
            count = known - start if wanted is None else min(wanted, known - start)
            num_blocks = -(-(start + count) // self.block_size) - len(self._tables[row])
            blocks = tuple(range(self._next_block, self._next_block + max(num_blocks, 0)))
            self._next_block += len(blocks)
            self._tables[row] += blocks
            is_done = start + count == known
            rows.append(
                BatchRow(
                    row,
                    start,
                    count,
                    (blocks,) if blocks else (),
                    int(is_done),
                    want_prompt_logprobs=row in wants,
                )
            )
            self._computed[row] += count
            if is_done:
                self._history[row] += 1  # the sample that this step draws
        new, freed, self._new, self._freed = self._new, self._freed, [], []
        return Batch(
            step=self.step,
            rows=tuple(rows),
            new_rows=tuple(new),
            freed_rows=tuple(freed),
            num_tokens=sum(r.num_new_tokens for r in rows),
            **options,
        )
