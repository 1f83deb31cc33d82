"""Small random models in transformers (the oracle) and in xLLM, and ways to feed prompts through paged KV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from xllm.config.model_spec import ModelSpec, read_model_spec
from xllm.engine.attention import AttentionPlanner
from xllm.engine.layers.build_context import build_context
from xllm.engine.memory import KVPool
from xllm.engine.models import CausalLM, ModelInput, load_model

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}
SMALL = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=211,
    max_position_embeddings=512,
    tie_word_embeddings=False,
)


def make_oracle(family: str, directory: Path, seed: int = 0, **settings: Any) -> Any:
    """Save a random transformers model to ``directory`` and return it (float32, eval)."""
    config_class, model_class = CLASSES[family]
    config = config_class(**{**SMALL, **settings})
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        # Norms of one, biases of zero and tiny matrices would hide swapped, skipped and doubled terms.
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))
            elif p.ndim == 1:
                p.copy_(0.5 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * 1.5 / p.shape[-1] ** 0.5)
    model.save_pretrained(directory)
    return model


@dataclass
class Engine:
    """Our model over a pool whose block tables are scrambled."""

    model: CausalLM
    spec: ModelSpec
    pool: KVPool
    planner: AttentionPlanner
    rng: np.random.Generator

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        dtype: str = "float32",
        block_size: int = 16,
        num_blocks: int = 256,
        device: str = "cpu",
        max_gather_bytes: int = 1 << 20,
    ) -> Engine:
        spec = read_model_spec(directory)
        torch_type, place = getattr(torch, dtype), torch.device(device)
        model = load_model(spec, directory, build_context(torch_type, place))
        pool = KVPool(spec.kv_layout(block_size=block_size, dtype=dtype), num_blocks, place)
        for layer in range(spec.num_layers):
            # A freed block may hold anything; a read beyond a row's length must not hide behind zeros.
            pool.layer(layer).k.fill_(float("nan"))
            pool.layer(layer).v.fill_(float("nan"))
        planner = AttentionPlanner(
            block_size=block_size,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype=torch_type,
            windows=spec.windows,
            device=place,
            max_gather_bytes=max_gather_bytes,
        )
        return cls(model, spec, pool, planner, np.random.default_rng(7))

    def tables(self, num_rows: int, max_tokens: int) -> np.ndarray:
        """Block tables of distinct random blocks."""
        width = -(-max_tokens // self.pool.block_size)
        blocks = self.rng.permutation(self.pool.num_blocks)[: num_rows * width]
        assert len(blocks) == num_rows * width, "the pool is too small for the test"
        return blocks.reshape(num_rows, width).astype(np.int32)

    def step(self, chunks: list[tuple[list[int], int]], tables: np.ndarray) -> torch.Tensor:
        """Run rows of (new tokens, start) and return the logits of all new tokens ``[T, V]``."""
        positions = np.concatenate([np.arange(start, start + len(ids)) for ids, start in chunks])
        slots = np.concatenate(
            [
                table[np.arange(start, start + len(ids)) // self.pool.block_size].astype(np.int64)
                * self.pool.block_size
                + np.arange(start, start + len(ids)) % self.pool.block_size
                for (ids, start), table in zip(chunks, tables, strict=True)
            ]
        )
        metadata = self.planner.plan(
            [len(ids) for ids, _ in chunks], [start + len(ids) for ids, start in chunks], tables, slots
        )
        device = self.pool.device
        inp = ModelInput(
            token_ids=torch.tensor([t for ids, _ in chunks for t in ids], device=device),
            positions=torch.from_numpy(positions).to(device),
            attention=metadata,
            logits_indices=torch.arange(len(positions), device=device),
        )
        return self.model.compute_logits(self.model(inp, self.pool)[inp.logits_indices])

    def logits(self, prompts: list[list[int]], chunk: int) -> list[torch.Tensor]:
        """Feed prompts together, ``chunk`` tokens per row and step; logits ``[len, V]`` of each."""
        tables = self.tables(len(prompts), max(map(len, prompts)))
        parts: list[list[torch.Tensor]] = [[] for _ in prompts]
        start = 0
        while start < max(map(len, prompts)):
            live = [i for i, p in enumerate(prompts) if start < len(p)]
            chunks = [(prompts[i][start : start + chunk], start) for i in live]
            out = self.step(chunks, tables[live])
            for i, part in zip(live, out.split([len(ids) for ids, _ in chunks]), strict=True):
                parts[i].append(part)
            start += chunk
        return [torch.cat(p) for p in parts]

    def greedy(self, prompts: list[list[int]], num_tokens: int, chunk: int = 10**9) -> list[list[int]]:
        """Prefill all prompts in chunks, then decode together."""
        tables = self.tables(len(prompts), max(map(len, prompts)) + num_tokens)
        sequences = [list(p) for p in prompts]
        done = [0] * len(prompts)
        while any(len(s) < len(p) + num_tokens for s, p in zip(sequences, prompts, strict=True)):
            live = [i for i, s in enumerate(sequences) if len(s) < len(prompts[i]) + num_tokens]
            chunks = [(sequences[i][done[i] : done[i] + chunk], done[i]) for i in live]
            out = self.step(chunks, tables[live])
            last = np.cumsum([len(ids) for ids, _ in chunks]) - 1
            for i, (ids, start), row in zip(live, chunks, last, strict=True):
                done[i] = start + len(ids)
                if done[i] == len(sequences[i]):
                    sequences[i].append(int(out[row].argmax()))
        return [s[len(p) :] for s, p in zip(sequences, prompts, strict=True)]


def random_prompts(vocab_size: int, lengths: list[int], seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, n).tolist() for n in lengths]


@torch.no_grad()
def oracle_logits(model: Any, prompt: list[int]) -> torch.Tensor:
    return model(torch.tensor([prompt], device=model.device)).logits[0].float()


@torch.no_grad()
def oracle_greedy(model: Any, prompt: list[int], num_tokens: int) -> tuple[list[int], list[float]]:
    """Greedy continuation and the top-2 margin at each token, without a cache."""
    ids, margins = list(prompt), []
    for _ in range(num_tokens):
        top = oracle_logits(model, ids)[-1].topk(2).values
        margins.append(float(top[0] - top[1]))
        ids.append(int(oracle_logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :], margins
