"""Model directories with a config.json only: enough for planning, nothing to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xllm.config.model_spec import ModelSpec, read_model_spec

GIB = 1024**3
SMALL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}
QWEN3_06B = SMALL | {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}


def write_config(directory: Path, config: dict[str, Any] = SMALL, **changes: Any) -> Path:
    """Write config.json and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


def make_spec(directory: Path, config: dict[str, Any] = SMALL, **changes: Any) -> ModelSpec:
    """The ModelSpec of such a directory."""
    return read_model_spec(write_config(directory, config, **changes))
