"""ModelSpec: defaults of each family, what is refused, sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xllm.config.model_spec import FAMILIES, read_generation_defaults, read_model_spec
from xllm.errors import ModelError

BASE: dict[str, Any] = dict(
    architectures=["Qwen3ForCausalLM"],
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=100,
    max_position_embeddings=1000,
)


def write(tmp_path: Path, **changes: Any) -> Path:
    raw = {k: v for k, v in {**BASE, **changes}.items() if v != "absent"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return tmp_path


def test_plain(tmp_path: Path) -> None:
    spec = read_model_spec(write(tmp_path, torch_dtype="bfloat16", eos_token_id=[3, 4], rope_theta=1e6))
    assert (spec.head_dim, spec.num_kv_heads, spec.has_qk_norm, spec.has_qkv_bias) == (32, 2, True, False)
    assert (spec.dtype, spec.eos_token_ids, spec.rope.theta, spec.windows) == (
        "bfloat16",
        (3, 4),
        1e6,
        (None,) * 4,
    )
    assert spec.kv_bytes_per_token("bfloat16") == 2 * 4 * 2 * 32 * 2
    layout = spec.kv_layout(block_size=16, dtype="bfloat16")
    assert layout.bytes_per_block() == 16 * spec.kv_bytes_per_token("bfloat16")
    assert spec.weight_bytes("float32") == 4 * spec.num_params


def test_published_sizes(tmp_path: Path) -> None:
    """Parameter counts of models whose totals are published."""
    small = write(
        tmp_path, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    assert read_model_spec(small).num_params == 596_049_920  # Qwen3-0.6B
    moe = write(
        tmp_path, architectures=["Qwen3MoeForCausalLM"], hidden_size=2048, intermediate_size=6144,
        num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128, vocab_size=151936,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
    )  # fmt: skip
    spec = read_model_spec(moe)
    assert round(spec.num_params / 1e9, 1) == 30.5  # Qwen3-30B-A3B
    assert 2.9 < (spec.num_active_params + 151936 * 2048) / 1e9 < 3.4
    llama = write(
        tmp_path, architectures=["LlamaForCausalLM"], hidden_size=4096, intermediate_size=14336,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim="absent", vocab_size=128256,
    )  # fmt: skip
    assert read_model_spec(llama).num_params == 8_030_261_248  # Llama 3.1 8B


@pytest.mark.parametrize("style", [4, 5])
def test_rope_of_both_transformers_formats(tmp_path: Path, style: int) -> None:
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=250)
    if style == 4:
        spec = read_model_spec(write(tmp_path, rope_theta=5e5, rope_scaling=yarn))
    else:
        spec = read_model_spec(write(tmp_path, rope_parameters={**yarn, "rope_theta": 5e5}))
    assert (spec.rope.kind, spec.rope.theta, spec.rope.factor) == ("yarn", 5e5, 4.0)
    assert spec.rope.original_max_position == 250


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        (dict(type="linear", factor=4.0), 4000),
        (dict(type="dynamic", factor=4.0), 1000),
        (dict(type="yarn", factor=4.0, original_max_position_embeddings=500), 2000),
        (dict(rope_type="llama3", factor=8, low_freq_factor=1, high_freq_factor=4), 1000),
        (dict(rope_type="default"), 1000),
    ],
)
def test_max_context(tmp_path: Path, rope: dict[str, Any], context: int) -> None:
    assert read_model_spec(write(tmp_path, rope_scaling=rope)).max_context == context


def test_windows(tmp_path: Path) -> None:
    def windows(**changes: Any) -> tuple[int | None, ...]:
        return read_model_spec(write(tmp_path, **changes)).windows

    mistral = dict(architectures=["MistralForCausalLM"])
    assert windows(**mistral) == (4096,) * 4
    assert windows(**mistral, sliding_window=None) == (None,) * 4
    assert windows(**mistral, sliding_window=7) == (7,) * 4
    assert windows(sliding_window=7) == (None,) * 4
    assert windows(sliding_window=7, use_sliding_window=True, max_window_layers=3) == (None, None, None, 7)
    types = ["full_attention", "sliding_attention"] * 2
    assert windows(sliding_window=7, use_sliding_window=True, layer_types=types) == (None, 7, None, 7)
    spec = read_model_spec(write(tmp_path, **mistral, sliding_window=7))
    assert spec.kv_layout(block_size=4, dtype="float32").groups[0].kind == "window"


def test_moe_layers(tmp_path: Path) -> None:
    moe = dict(
        architectures=["Qwen3MoeForCausalLM"], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    )
    spec = read_model_spec(write(tmp_path, **moe, decoder_sparse_step=2))
    assert spec.moe is not None and spec.moe.layers == {1, 3}
    spec = read_model_spec(write(tmp_path, **moe, mlp_only_layers=[0, 1]))
    assert spec.moe is not None and spec.moe.layers == {2, 3}
    assert read_model_spec(write(tmp_path, **{**moe, "num_experts": 0})).moe is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(architectures=["GPT2LMHeadModel"]), ["GPT2LMHeadModel", *FAMILIES]),
        (dict(architectures=["X"], auto_map={"AutoModel": "x.Y"}), ["auto_map", "never"]),
        (dict(architectures="absent"), ["architectures"]),
        (
            dict(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128, "x": [1]}),
            ["quantization_config", "gptq, bits 4, group_size 128", "bfloat16"],
        ),
        (
            dict(quantization_config={"quant_method": "fp8", "fmt": "e4m3"}),
            ["quantised (fp8, fmt e4m3)"],
        ),
        (dict(quantization_config={"bits": 8}), ["method not named, bits 8"]),
        (dict(quantization_config="int8"), ["(int8)"]),
        (dict(hidden_act="gelu"), ["hidden_act", "gelu"]),
        (dict(rope_scaling=dict(type="longrope", factor=2)), ["longrope", "rope_scaling", "yarn"]),
        (dict(rope_scaling=dict(type="linear")), ["rope_scaling.factor"]),
        (dict(rope_scaling=dict(rope_type="llama3", factor=8)), ["low_freq_factor"]),
        (dict(rope_scaling=[1]), ["rope_scaling", "object"]),
        (dict(partial_rotary_factor=0.5), ["partial_rotary_factor"]),
        (dict(hidden_size="absent"), ["hidden_size", "missing"]),
        (dict(hidden_size="64"), ["hidden_size", "integer"]),
        (dict(vocab_size=0), ["vocab_size"]),
        (dict(num_key_value_heads=3), ["num_key_value_heads", "divide"]),
        (dict(head_dim=33), ["head_dim", "odd"]),
        (dict(torch_dtype="float8_e4m3fn"), ["torch_dtype", "float8_e4m3fn"]),
        (dict(tie_word_embeddings="yes"), ["tie_word_embeddings"]),
        (dict(rms_norm_eps=float("nan")), ["rms_norm_eps"]),
        (dict(eos_token_id=[1, "x"]), ["eos_token_id"]),
        (dict(use_sliding_window=True, sliding_window=5, layer_types=["nope"] * 4), ["layer_types"]),
        (
            dict(architectures=["Qwen3MoeForCausalLM"], num_experts=2, num_experts_per_tok=4),
            ["num_experts_per_tok"],
        ),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        read_model_spec(write(tmp_path, **changes))
    for word in ["config.json", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100000])
def test_bad_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_model_spec(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        read_model_spec(tmp_path)


def test_generation_defaults(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path).temperature is None
    text = json.dumps(dict(eos_token_id=5, temperature=0.6, top_k=20, top_p=0.95, do_sample=True))
    (tmp_path / "generation_config.json").write_text(text)
    found = read_generation_defaults(tmp_path)
    assert (found.eos_token_ids, found.temperature, found.top_k, found.top_p) == ((5,), 0.6, 20, 0.95)
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ModelError, match="temperature"):
        read_generation_defaults(tmp_path)
