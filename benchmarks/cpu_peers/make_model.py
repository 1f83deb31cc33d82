"""A Qwen3-shaped checkpoint with random weights and a real byte-level BPE tokenizer. Nothing is downloaded.

    python make_model.py 0.6b|tiny FOLDER [--seed 0]

Weights are normal with deviation 0.02, norms are one. The tokenizer is trained on the docstrings of the
standard library and padded to the vocabulary with entries no merge reaches, so that every id has a text.
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SHAPES = {
    "0.6b": {
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "intermediate_size": 768, "vocab_size": 8192,
    },
}  # fmt: skip
MAX_TOKENS = 8192
_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# How Qwen's tokenizers cut text into words; llama.cpp knows the expression as "qwen2".
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if text := ast.get_docstring(node):
                yield text


def make_tokenizer(vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, 16384) - 64,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(docstrings(), trainer)
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    number = 0
    while len(vocab) < vocab_size - len(_SPECIALS):
        vocab.setdefault(f"\u0120dummy{number}", len(vocab))
        number += 1
    padded = Tokenizer.from_str(json.dumps(content))
    padded.add_special_tokens(_SPECIALS)
    assert padded.get_vocab_size() == vocab_size
    return padded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    tokenizer = make_tokenizer(shape["vocab_size"])
    end, padding = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        model_max_length=MAX_TOKENS,
    )  # fmt: skip
    fast.save_pretrained(args.folder)
    config = Qwen3Config(
        **shape, tie_word_embeddings=True, max_position_embeddings=MAX_TOKENS, rope_theta=1000000.0,
        eos_token_id=end, bos_token_id=None, pad_token_id=padding, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(args.seed)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, 0.02)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=padding, do_sample=False)
    model.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
