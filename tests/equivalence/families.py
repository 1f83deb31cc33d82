"""Small random-weight models of every family, made by transformers, and the greedy tokens transformers gives for them.

Weights are drawn with a larger spread than usual, so that the best two logits of a position are well apart: a test that
compares tokens of near-flat logits would test the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 331
MAX_POSITION = 8192


@dataclass(frozen=True)
class Shape:
    """One random model: family, and what its config says beyond the small defaults."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)


SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITION,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}

SHAPES: dict[str, Shape] = {
    "llama": Shape("Llama"),
    "llama3-rope-tied": Shape(
        "Llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            },
        },
    ),
    "llama-bias-mha": Shape("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "mistral-window": Shape("Mistral", {"sliding_window": 37, "head_dim": 32}),
    "mistral-full": Shape("Mistral", {"sliding_window": None}),
    "qwen2-gqa7": Shape(
        "Qwen2",
        {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "qwen2-mixed-window": Shape(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1}
    ),
    "qwen3": Shape("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    # 16 KiB of KV per token in float32: pages of 64 KiB hold four tokens, so even short sequences have several.
    "qwen3-wide-kv": Shape("Qwen3", {"head_dim": 128, "num_key_value_heads": 4, "num_hidden_layers": 4}),
    "qwen3-yarn": Shape(
        "Qwen3",
        {
            "head_dim": 24,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 2048,
            },
        },
    ),
    "qwen3-moe": Shape(
        "Qwen3Moe",
        {
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
        },
    ),
}


def build_reference(name: str, seed: int = 1) -> Any:
    """The transformers model of a shape, float32, on the CPU."""
    shape = SHAPES[name]
    config_class = getattr(transformers, f"{shape.family}Config")
    model_class = getattr(transformers, f"{shape.family}ForCausalLM")
    config = config_class(**{**SMALL, **shape.options})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = model_class(config).to(torch.float32).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):  # initialised to zero: a bias nobody adds would not be seen
                parameter.normal_(0.0, 0.15)
            elif "norm" in parameter_name:
                parameter.uniform_(0.7, 1.3)
    return model


def save_model(name: str, directory: Path, seed: int = 1) -> Any:
    """Write a shape as a Hugging Face directory and return the model that wrote it."""
    model = build_reference(name, seed)
    model.save_pretrained(directory)
    return model


@dataclass(frozen=True)
class Greedy:
    """Greedy tokens of one prompt, and for each the distance between the two best logits."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


class Reference:
    """Greedy decoding by transformers, one prompt at a time, answers kept."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._continue = lru_cache(maxsize=None)(self._generate)

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> Greedy:
        """The first ``num_tokens`` greedy tokens after ``prompt``."""
        return self._continue(tuple(prompt), num_tokens)

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Logits of every position, ``[T, V]``."""
        return self._model(torch.tensor([list(token_ids)])).logits[0].float()

    @torch.inference_mode()
    def _generate(self, prompt: tuple[int, ...], num_tokens: int) -> Greedy:
        ids = torch.tensor([prompt])
        cache = None
        tokens: list[int] = []
        margins: list[float] = []
        for _ in range(num_tokens):
            out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            best = out.logits[0, -1].float().topk(2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            ids = torch.tensor([[tokens[-1]]])
        return Greedy(tuple(tokens), tuple(margins))
