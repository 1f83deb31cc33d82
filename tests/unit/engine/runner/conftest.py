"""A runner over a tiny random model, driven by hand-made batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.fakes.batches import HandBrain
from xllm.config.model_spec import ModelSpec, RopeSpec
from xllm.engine.attention import AttentionPlanner
from xllm.engine.layers.build_context import build_context
from xllm.engine.memory import KVPool
from xllm.engine.models import CausalLM, build_model
from xllm.engine.platform import select_platform
from xllm.engine.runner.dummy_weights import fill_with_dummy_weights
from xllm.engine.runner.graph_book import GraphBook
from xllm.engine.runner.model_runner import ModelRunner
from xllm.types.batch import Batch, BatchResult, StepMask

VOCAB = 97
BLOCK_SIZE = 4
SPEC = ModelSpec(
    architecture="Qwen3ForCausalLM",
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=VOCAB,
    max_position=256,
    rms_norm_eps=1e-6,
    rope=RopeSpec(),
    tie_word_embeddings=False,
    has_qk_norm=True,
    windows=(None, None),
)


class TinyEngineBody:
    """A model runner with its parts in reach, and a hand brain that plans for it."""

    def __init__(self, *, max_num_seqs: int = 8, **spec: Any) -> None:
        self.spec = replace(SPEC, **spec)
        platform = select_platform("cpu")
        self.model: CausalLM = build_model(self.spec, build_context(torch.float32, platform.device)).eval()
        fill_with_dummy_weights(self.model, seed=3)
        self.kv = KVPool(self.spec.kv_layout(block_size=BLOCK_SIZE, dtype="float32"), 256, platform.device)
        self.planner = AttentionPlanner(
            block_size=BLOCK_SIZE,
            num_kv_heads=self.spec.num_kv_heads,
            head_dim=self.spec.head_dim,
            dtype=torch.float32,
            windows=self.spec.windows,
            device=platform.device,
            max_gather_bytes=platform.max_gather_bytes,
        )
        self.runner = ModelRunner(
            self.model,
            self.kv,
            self.planner,
            platform,
            max_num_seqs=max_num_seqs,
            max_model_len=256,
            num_threads=1,
        )
        self.brain = HandBrain(BLOCK_SIZE)

    def use(self, book: GraphBook) -> None:
        """Launch forwards that way from now on."""
        self.runner.graph_book = book

    def run(self, batch: Batch, mask: StepMask | None = None) -> BatchResult:
        def take_mask() -> StepMask:
            assert mask is not None
            return mask

        return self.runner.run(batch, take_mask)

    def decode(self, row: int, num_tokens: int) -> list[int]:
        """Run one row until ``num_tokens`` tokens are sampled."""
        tokens: list[int] = []
        while len(tokens) < num_tokens:
            tokens += self.run(self.brain.batch({row: None})).tokens[0]
        return tokens


@pytest.fixture
def make_body() -> Callable[..., TinyEngineBody]:
    return TinyEngineBody
