"""Writes a dense Qwen3 checkpoint as GGUF in bfloat16. Runs in llama.cpp's environment (packages gguf, torch).

python make_gguf.py FOLDER FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file


def write_config(writer: Any, config: dict[str, Any]) -> None:
    writer.add_name("random")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def write_tokenizer(writer: Any, config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    specials = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    text_of = {token: text for text, token in (tokenizer["model"]["vocab"] | specials).items()}
    texts = [text_of.get(token, f"[PAD{token}]") for token in range(config["vocab_size"])]
    types = [gguf.TokenType.CONTROL if text in specials else gguf.TokenType.NORMAL for text in texts]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)


def write_tensors(writer: Any, config: dict[str, Any], path: Path) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    bf16 = gguf.GGMLQuantizationType.BF16
    for name, tensor in load_file(path).items():
        values = tensor.float().numpy()
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target, name
        if values.ndim == 1:
            writer.add_tensor(target, values.astype(np.float32))
        else:
            writer.add_tensor(target, gguf.quants.quantize(values, bf16), raw_dtype=bf16)


def main() -> None:
    source, target = Path(sys.argv[1]), sys.argv[2]
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "qwen3")
    write_config(writer, config)
    write_tokenizer(writer, config, json.loads((source / "tokenizer.json").read_text()))
    write_tensors(writer, config, source / "model.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


if __name__ == "__main__":
    main()
