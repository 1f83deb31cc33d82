"""A brain over tiny pools with a hashing body: what the unit tests of cache, scheduler and core drive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.fakes.hash_executor import HashExecutor
from xllm.base.clock import ManualClock
from xllm.engine.brain import build_brain
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.types.batch import Batch
from xllm.types.kv_layout import build_attention_layout
from xllm.types.output import RequestOutput
from xllm.types.pages import PageGeometry
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

VOCAB, BLOCK = 1000, 4


def make_geometry(
    limits: SchedulerLimits, num_blocks: int, block_size: int, max_mappings: int | None = None
) -> PageGeometry:
    """Virtual ranges for these limits; the bytes of a page mean nothing to a hashing body."""
    return PageGeometry(
        page_bytes=65536,
        tokens_per_page=block_size,
        pages_per_range=-(-limits.max_model_len // block_size),
        num_ranges=limits.max_num_seqs,
        max_mappings=max_mappings or 2 * num_blocks,
    )


class SmallBrain:
    """EngineCore + HashExecutor under a manual clock, one step per call."""

    def __init__(
        self,
        *,
        num_blocks: int = 32,
        depth: int = 1,
        xtensor: bool = False,
        refusal: float = 0.0,
        **options: Any,
    ) -> None:
        limits = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 64, "watermark": 0.0}
        wiring = {"enable_prefix_caching", "scheduling_policy", "admission", "times", "slo"}
        self.clock = ManualClock(100.0)
        chosen = SchedulerLimits(**(limits | {k: v for k, v in options.items() if k not in wiring}))
        pages = make_geometry(chosen, num_blocks, BLOCK) if xtensor else None
        self.core = build_brain(
            layout=build_attention_layout(
                block_size=BLOCK, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32"
            ),
            num_blocks=[num_blocks],
            limits=chosen,
            vocab_size=VOCAB,
            clock=self.clock,
            depth=depth,
            pages=pages,
            **{k: v for k, v in options.items() if k in wiring},
        )
        self.body = HashExecutor(
            block_size=BLOCK, num_blocks=num_blocks, vocab_size=VOCAB, pages=pages, refusal=refusal
        )
        self.outputs: list[RequestOutput] = []

    def add(self, name: str, prompt: Sequence[int] | int, **fields: Any) -> Request:
        """Queue a request; a number stands for a prompt of that length. Sampling fields and request fields may mix."""
        ids = tuple(range(prompt)) if isinstance(prompt, int) else tuple(prompt)
        sampling = {k: v for k, v in fields.items() if k in SamplingParams.__struct_fields__}
        others = {k: v for k, v in fields.items() if k not in sampling}
        params = SamplingParams(**({"max_tokens": 4} | sampling))
        request = Request(id=name, prompt_token_ids=ids, sampling=params, **({"seed": 1} | others))
        self.core.add(request)
        return request

    def step(self, outcome: str = "ok") -> Batch | None:
        """Plan, run and take one step."""
        batch = self.core.next_batch()
        if batch is None:
            return None
        self.core.take_masks()
        self.outputs += self.core.on_result(self.body.run(batch, outcome))
        self.core.check()
        return batch

    def run(self, max_steps: int = 500) -> list[Batch]:
        """Step until nothing is left."""
        batches = []
        while self.core.num_unfinished:
            batch = self.step()
            assert batch is not None, "stuck"
            batches.append(batch)
            assert len(batches) < max_steps
        return batches

    def tokens(self, name: str, choice: int = 0) -> list[int]:
        """What a choice has been given."""
        mine = (o for o in self.outputs if (o.request_id, o.choice) == (name, choice))
        return [t for o in mine for t in o.token_ids]

    def last(self, name: str, choice: int = 0) -> RequestOutput:
        """The newest output of a choice."""
        return [o for o in self.outputs if (o.request_id, o.choice) == (name, choice)][-1]
