"""How far our bfloat16 is from float32, in units of how far transformers' bfloat16 is: through the runner that serves.

All sides run the same weights, rounded to bfloat16 beforehand, so what is compared is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.equivalence.engines import build_engine, request
from tests.numeric.oracle import CLASSES, make_oracle, oracle_logits, random_prompts
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.models import CausalLM, LayerHooks
from xllm.engine.runner.graph_book import GraphBook, Launch
from xllm.engine.runner.model_runner import ModelRunner
from xllm.engine.runner.native_book import NativeBook
from xllm.engine.runner.step_plan import StepPlan

WAYS: Mapping[str, Mapping[str, str]] = {
    "layers in one call": {"graphs": "layers", "kernels": "auto"},
    "operation by operation": {"graphs": "off", "kernels": "auto"},
    "torch's operations": {"graphs": "off", "kernels": "reference"},
}
"""Options of the runner; the first is what serves on a CPU."""
CHUNK = 32
CHOOSING = "qwen3_moe, 2 of 8 experts"
"""A last bit decides which experts a token gets, and one token with others outweighs all rounding: the error of a seed
says which side was lucky (0.2 to 2.3 times the other's), and only a mean over many seeds says something."""


def family_settings(hidden: int, layers: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Random models of every family, by name: heads in groups of several sizes, biases, windows, experts."""
    wide = dict(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, vocab_size=1031,
        num_attention_heads=hidden // 32,
    )  # fmt: skip
    experts = dict(head_dim=64, num_experts=8, moe_intermediate_size=hidden // 2)
    return {
        "llama": ("llama", dict(**wide, attention_bias=True)),
        "mistral": ("mistral", dict(**wide, sliding_window=40)),
        "qwen2": ("qwen2", {**wide, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 32}),
        "qwen3": ("qwen3", dict(**wide, head_dim=64)),
        "qwen3_moe, all experts": ("qwen3_moe", dict(**wide, **experts, num_experts_per_tok=8)),
        CHOOSING: ("qwen3_moe", dict(**wide, **experts, num_experts_per_tok=2)),
    }


@dataclass
class RecordingBook:
    """A way to launch forwards, and the logits of every token that went through it, in order."""

    inner: GraphBook
    model: CausalLM
    logits: list[torch.Tensor] = field(default_factory=list)

    def prepare(self, plan: StepPlan) -> Launch:
        return self.inner.prepare(plan)

    def forward(self, launch: Launch, hooks: LayerHooks) -> torch.Tensor:
        hidden = self.inner.forward(launch, hooks)
        self.logits.append(self.model.compute_logits(hidden))
        return hidden


def runner_logits(directory: Path, prompts: list[list[int]], way: str) -> list[torch.Tensor]:
    """Logits ``[len, V]`` of each prompt, one prompt at a time in chunks, by the production brain and runner."""
    engine = build_engine(
        directory, dtype="bfloat16", max_num_batched_tokens=CHUNK, max_num_seqs=4,
        enable_prefix_caching=False, num_blocks=32, max_model_len=512, **WAYS[way],
    )  # fmt: skip
    try:
        assert isinstance(engine.executor, ThreadExecutor)
        runner = engine.executor._runner
        assert isinstance(runner, ModelRunner)
        book = RecordingBook(runner.graph_book, runner._model)
        runner.graph_book = book
        found = []
        for index, prompt in enumerate(prompts):
            book.logits = []
            engine.run([request(f"p{index}", prompt, 1)])
            found.append(torch.cat(book.logits)[: len(prompt)])
            assert len(found[-1]) == len(prompt)
        assert isinstance(book.inner, NativeBook) == (way == "layers in one call")
        assert not isinstance(book.inner, NativeBook) or book.inner.num_launches >= 2 * len(prompts)
    finally:
        engine.close()
    return found


def error_ratios(
    family: str,
    settings: Mapping[str, Any],
    directory: Path,
    *,
    seeds: Iterable[int],
    lengths: list[int],
    ways: Iterable[str],
) -> dict[str, float]:
    """Mean |logit - float32 logit| over seeds and tokens by way, divided by that of transformers' bfloat16."""
    ours: dict[str, float] = dict.fromkeys(ways, 0.0)
    theirs = 0.0
    for seed in seeds:
        low = directory / f"low{seed}"
        make_oracle(family, directory / "full", seed, **settings).to(torch.bfloat16).save_pretrained(low)
        exact, other = (
            CLASSES[family][1].from_pretrained(low, dtype=dtype).eval()
            for dtype in (torch.float32, torch.bfloat16)
        )
        prompts = random_prompts(exact.config.vocab_size, lengths, seed=seed + 11)
        expected = [oracle_logits(exact, prompt) for prompt in prompts]
        theirs += mean_error([oracle_logits(other, prompt) for prompt in prompts], expected)
        for way in ours:
            ours[way] += mean_error(runner_logits(low, prompts, way), expected)
    assert theirs > 0
    return {way: error / theirs for way, error in ours.items()}


def mean_error(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Mean |difference| over all logits."""
    return float(torch.cat([(a - b).abs().flatten() for a, b in zip(got, expected, strict=True)]).mean())
