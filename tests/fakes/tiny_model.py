"""A random Qwen3 with a real byte-level BPE and a chat template: a whole model directory in a few hundred KB."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fakes.small_tokenizers import build_byte_level

TEMPLATE = (
    "{% for t in tools or [] %}<tool_call>{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path, *, max_position: int = 2048, seed: int = 0) -> Path:
    """Write config.json, weights (float32, as transformers makes them), tokenizer and template."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    library = build_byte_level()
    config = Qwen3Config(
        vocab_size=library.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=max_position,
        tie_word_embeddings=True,
        eos_token_id=library.token_to_id("<|im_end|>"),
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(0, 0.2)  # sharp enough that greedy choices are not ties
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    library.save(str(folder / "tokenizer.json"))
    body = {
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(body), encoding="utf-8")
    return folder
