"""Write the trained model as a Hugging Face directory (bfloat16 safetensors)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from demo_data import END_OF_TEXT, MARKS, SPECIAL, TURN_END
from safetensors.torch import save_file
from small_model import ModelShape
from small_world.rendering import CHAT_TEMPLATE
from tokenizers import Tokenizer
from torch import Tensor


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_config(shape: ModelShape, tokenizer: Tokenizer) -> dict[str, object]:
    """config.json of a Qwen3 model with this shape."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": shape.max_position_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape.num_layers,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
    }


def tokenizer_config(shape: ModelShape, tokenizer: Tokenizer) -> dict[str, object]:
    """tokenizer_config.json with the chat template."""
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL,
        }
        for token in (*SPECIAL, *MARKS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "errors": "replace",
        "model_max_length": shape.max_position_embeddings,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def export(weights: dict[str, Tensor], shape: ModelShape, tokenizer: Tokenizer, out: Path) -> None:
    """Write every file of the directory but the model card."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in weights.items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(out / "config.json", model_config(shape, tokenizer))
    _write_json(out / "tokenizer_config.json", tokenizer_config(shape, tokenizer))
    ends = [tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)]
    generation = {
        "bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False, "temperature": 0.0,
    }  # fmt: skip
    _write_json(out / "generation_config.json", generation)
