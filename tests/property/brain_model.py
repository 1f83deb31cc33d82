"""The brain over tiny pools with a body that checks what it reads, and a ledger of what the outside was told.

Used by the random walk and by the hypothesis state machine; every operation is a method.
"""

from __future__ import annotations

import random
from collections import Counter

from tests.fakes.hash_executor import HashExecutor, next_token
from tests.fakes.known_speed import known_speed
from tests.fakes.small_brain import make_geometry
from xllm.base.clock import ManualClock
from xllm.engine.brain import build_brain
from xllm.engine.cache.pages.placement import RangePlacement
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.scheduler.limits import SchedulerLimits, SloOptions
from xllm.errors import CapacityError
from xllm.types.batch import Batch
from xllm.types.kv_layout import KVComponent, KVGroup, KVLayout
from xllm.types.output import RequestOutput
from xllm.types.request import Request, SloBudgets
from xllm.types.sampling import SamplingParams

VOCAB, BLOCK, MAX_LEN = 50, 4, 40
POLICIES = ("fcfs", "urgency", "priority", "fair-urgency", "deadline", "fair-fcfs")


def make_layout(*, with_state: bool) -> KVLayout:
    component = KVComponent(name="k", dtype="float32", shape=(1, 2))
    groups = [KVGroup(name="attention", layers=(0,), kind="full", components=(component,))]
    if with_state:
        groups.insert(0, KVGroup(name="recurrent", layers=(1,), kind="state", components=(component,)))
    return KVLayout(block_size=BLOCK, groups=tuple(groups))


class BrainModel:
    """The brain under test with its body, and what has been promised to the outside."""

    def __init__(self, rng: random.Random, *, depth: int, kind: str, caching: bool, policy: str) -> None:
        """``kind``: ``paged``, ``state`` (a second group of that kind) or ``xtensor`` (virtual ranges)."""
        self.rng = rng
        with_state = kind == "state"
        num_blocks = rng.choice([10, 12, 20, 40])
        self.clock = ManualClock()
        limits = SchedulerLimits(
            max_num_seqs=rng.choice([1, 2, 4, 8]),
            max_num_batched_tokens=rng.choice([1, 3, 7, 16, 64]),
            max_model_len=MAX_LEN,
            max_num_queued_reqs=20,
            watermark=rng.choice([0.0, 0.1]),
        )
        blocks = [16, num_blocks] if with_state else [num_blocks]
        pages = None
        if kind == "xtensor":
            pages = make_geometry(limits, num_blocks, BLOCK, int(num_blocks * rng.choice([1.0, 1.3, 3.0])))
        self.core: EngineCore = build_brain(
            layout=make_layout(with_state=with_state),
            num_blocks=blocks,
            limits=limits,
            vocab_size=VOCAB,
            clock=self.clock,
            enable_prefix_caching=caching,
            scheduling_policy=policy.removeprefix("fair-"),
            times=known_speed(),
            slo=SloOptions(
                is_fair=policy.startswith("fair-"),
                weights={"a": 2.0},
                starvation_s=rng.choice([0.05, 1.0]),
                token_budget=rng.random() < 0.8,
                early_rejection=rng.random() < 0.8,
            ),
            depth=depth,
            pages=pages,
        )
        group = 1 if with_state else 0
        self.body = HashExecutor(
            block_size=BLOCK,
            num_blocks=num_blocks,
            vocab_size=VOCAB,
            kv_group=group,
            pages=pages,
            refusal=rng.choice([0.0, 0.05, 0.5]) if pages else 0.0,
        )
        self.inflight: list[tuple[Batch, str]] = []
        self.requests: dict[str, Request] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.ended: Counter[tuple[str, int]] = Counter()
        self.reasons: Counter[str] = Counter()
        self.seen = Counter[str]()
        self.prefixes = [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 25))] for _ in range(3)]

    def add(self) -> None:
        rng = self.rng
        prompt = list(rng.choice(self.prefixes)) if rng.random() < 0.7 else []
        prompt += [rng.randrange(VOCAB) for _ in range(rng.randrange(0, 10))]
        prompt = prompt[: MAX_LEN - 2] or [1]
        request = Request(
            id=f"r{len(self.requests)}",
            prompt_token_ids=tuple(prompt),
            seed=rng.randrange(1000),
            sampling=SamplingParams(
                n=rng.choice([1, 1, 1, 2, 3]),
                max_tokens=rng.randrange(1, 12),
                stop_token_ids=(7,),
                min_tokens=rng.choice([0, 0, 1]),
            ),
            eos_token_ids=(3,),
            priority=rng.randrange(3),
            offline=rng.random() < 0.2,
            cache_salt=rng.choice(["", "", "s"]),
            deadline_in_s=rng.choice([None, None, 3.0, 0.3]),
            tenant=rng.choice(["", "a", "b"]),
            slo=SloBudgets(
                ttft_ms=rng.choice([None, 20.0, 200.0]),
                tpot_ms=rng.choice([None, 3.0, 20.0]),
                ttlt_ms=rng.choice([None, None, 500.0]),
            ),
        )
        try:
            self.core.add(request)
        except CapacityError:
            self.seen["refused"] += 1
            return
        self.requests[request.id] = request

    def take(self, outputs: list[RequestOutput]) -> None:
        for out in outputs:
            key = (out.request_id, out.choice)
            assert not self.ended[key], f"{key} spoke after its end"
            tokens = self.tokens.setdefault(key, [])
            assert out.first_token_index == len(tokens), "token indices have a gap"
            tokens.extend(out.token_ids)
            if out.finish_reason is not None:
                assert out.usage is not None
                assert out.usage.num_output_tokens == len(tokens)
                self.ended[key] += 1
                self.reasons[out.finish_reason] += 1

    def submit(self, outcome: str | None = None) -> None:
        batch = self.core.next_batch()
        if batch is not None:
            self.seen["chunked"] += sum(1 for r in batch.rows if r.num_logits == 0)
            self.seen["overlapped"] += len(self.inflight)
            self.inflight.append(
                (batch, self.rng.choices(["ok", "failed", "interrupted"], [0.94, 0.02, 0.04])[0])
            )

    def answer(self) -> None:
        if self.inflight:
            batch, outcome = self.inflight.pop(0)
            self.clock.advance(self.rng.random() * 1e-3 * batch.num_tokens)
            for mask in self.core.take_masks():
                self.body.masks[mask.step] = mask
            self.take(self.core.on_result(self.body.run(batch, outcome)))
            self.seen[outcome] += 1

    def abort(self) -> None:
        live = [
            r
            for r in self.requests
            if any(not self.ended[(r, c)] for c in range(self.requests[r].sampling.n))
        ]
        if live:
            request = self.rng.choice(live)
            choice = self.rng.choice([None, 0])
            self.take(self.core.abort(request, 0, choice, self.rng.choice(["abort", "stop"])))

    def tick(self) -> None:
        self.clock.advance(self.rng.random())
        self.take(self.core.tick())

    def drain(self) -> None:
        for _ in range(20_000):
            if not self.core.num_unfinished and not self.inflight:
                break
            batch = self.core.next_batch()
            if batch is not None:
                self.inflight.append((batch, "ok"))
            else:
                assert self.inflight, f"stuck: {list(self.core.scheduler.sequences())}"
                self.answer()
            self.core.check()
        for request in self.requests.values():
            for choice in range(request.sampling.n):
                assert self.ended[(request.id, choice)] == 1, f"{request.id}:{choice} ended {self.ended}"

    def verify_tokens(self) -> None:
        """Every stream is a prefix of what a lone run gives."""
        for (request_id, choice), tokens in self.tokens.items():
            request = self.requests[request_id]
            history = list(request.prompt_token_ids)
            for token in tokens:
                assert token == next_token(history, request.seed, choice, VOCAB)
                history.append(token)

    def finish(self) -> None:
        """Run to the end; nothing may be lost, doubled, wrong or left behind."""
        self.drain()
        self.verify_tokens()
        load = self.core.load()
        assert load.blocks_used == load.blocks_leased == load.blocks_pinned == 0
        assert load.blocks_free + load.blocks_cached == load.blocks_total
        self.seen["early rejections"] += load.num_early_rejections
        self.seen["hits"] += self.core.scheduler.num_hit_tokens
        self.seen["preemptions"] += self.core.scheduler.num_preemptions
        self.seen["copies"] += self.body.num_copies
        self._see_pages()

    def _see_pages(self) -> None:
        """What the layout of virtual ranges did."""
        placement, pages = self.core.cache.placement, self.body.pages
        if not isinstance(placement, RangePlacement) or pages is None:
            return
        pages.wait()
        self.seen["rebound"] += placement.num_rebound
        self.seen["shared"] += placement.num_shared
        self.seen["ahead"] += pages.num_ahead
        self.seen["mapped"] += pages.num_mapped
        self.seen["unmapped"] += pages.num_unmapped
        self.seen["refused"] += pages.num_refused
        self.seen["repaired"] += pages.num_repaired
