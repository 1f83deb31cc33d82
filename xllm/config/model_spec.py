"""ModelSpec: what a model *is*, read from its Hugging Face directory without torch and without a weight.

``read_model_spec`` resolves every default of the family, so that the code that computes (models) and the
code that plans (memory, config) read the same facts. A setting whose meaning is not built is an error that
names its key: a model that loads computes what its authors meant.

Families: Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE. Rotary scalings: ``default``, ``linear``, ``llama3``,
``yarn``; ``dynamic`` inside the context the model was trained with, where it is the identity (beyond it the
keys in the cache would depend on when they were computed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xllm.config.model_json import JsonReader, read_json_object
from xllm.types.kv_layout import DTYPE_BYTES, KVLayout, build_attention_layout

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeSpec:
    """Rotary position embedding over the whole head dimension."""

    kind: str = "default"
    """One of ``ROPE_KINDS``."""
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    """Tokens of the unscaled context; llama3 and yarn."""
    low_freq_factor: float = 1.0
    """llama3."""
    high_freq_factor: float = 4.0
    """llama3."""
    attention_factor: float | None = None
    """yarn: multiplies cos and sin; None = derived from the factor."""
    beta_fast: float = 32.0
    """yarn."""
    beta_slow: float = 1.0
    """yarn."""
    mscale: float | None = None
    """yarn, DeepSeek's variant of the derived attention factor."""
    mscale_all_dim: float | None = None
    truncate: bool = True
    """yarn: round the correction range to whole dimensions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeSpec:
    """Sparse layers: a softmax router that sends each token to ``top_k`` of ``num_experts``."""

    num_experts: int
    top_k: int
    intermediate_size: int
    norm_topk_prob: bool
    """Whether the chosen weights are scaled to sum to one."""
    layers: frozenset[int]
    """Which layers are sparse; the others have a dense MLP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Shape and settings of a decoder-only model; every default is resolved."""

    architecture: str
    """Name in config.json, e.g. ``Qwen3ForCausalLM``; the key of the model registry."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    """``max_position_embeddings`` as written in config.json."""
    rms_norm_eps: float
    rope: RopeSpec
    tie_word_embeddings: bool
    dtype: str = "bfloat16"
    """Of the checkpoint, as config.json says; float32 when it says nothing."""
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    """Per layer: tokens a query sees including itself, or None for all."""
    moe: MoeSpec | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """From config.json; generation_config.json wins where it names some."""
    path: str = field(default="", compare=False)
    """The directory it was read from."""

    def __post_init__(self) -> None:
        assert len(self.windows) == self.num_layers, "one window entry per layer"

    @property
    def max_context(self) -> int:
        """Tokens a sequence may have: the trained range, stretched where the rotary scaling stretches it."""
        if self.rope.kind == "linear":
            return int(self.max_position * self.rope.factor)
        if self.rope.kind == "yarn":
            return max(self.max_position, int(self.rope.original_max_position * self.rope.factor))
        return self.max_position

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer's MLP is a mixture of experts."""
        return self.moe is not None and layer in self.moe.layers

    def num_layer_params(self, layer: int) -> int:
        """Parameters of one decoder layer."""
        d, q, kv = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = d * (q + 2 * kv) + q * d
        attention += (
            (q + 2 * kv) * self.has_qkv_bias + d * self.has_o_bias + 2 * self.head_dim * self.has_qk_norm
        )
        if self.is_sparse(layer):
            assert self.moe is not None
            mlp = self.moe.num_experts * (3 * d * self.moe.intermediate_size + d)
        else:
            mlp = 3 * d * self.intermediate_size + (2 * self.intermediate_size + d) * self.has_mlp_bias
        return attention + mlp + 2 * d

    @property
    def num_params(self) -> int:
        """All parameters; tied embeddings count once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.hidden_size + sum(self.num_layer_params(i) for i in range(self.num_layers))

    @property
    def num_active_params(self) -> int:
        """Parameters one token multiplies with, the input embedding aside."""
        total = self.num_params
        if not self.tie_word_embeddings:
            total -= self.vocab_size * self.hidden_size
        if self.moe is not None:
            idle = self.moe.num_experts - self.moe.top_k
            total -= len(self.moe.layers) * idle * 3 * self.hidden_size * self.moe.intermediate_size
        return total

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the weights in memory when run in ``dtype``."""
        return self.num_params * DTYPE_BYTES[dtype]

    def mean_matrix_bytes(self, dtype: str) -> int:
        """Bytes of one matrix that a token multiplies with, on average: seven per layer, and the head."""
        return self.num_active_params * DTYPE_BYTES[dtype] // (7 * self.num_layers + 1)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of K and V of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[dtype]

    def kv_layout(self, *, block_size: int, dtype: str) -> KVLayout:
        """The cache layout: one group; of kind ``window`` only if every layer has the same window."""
        same = len(set(self.windows)) == 1
        return build_attention_layout(
            block_size=block_size,
            num_layers=self.num_layers,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=dtype,
            window=self.windows[0] if same else None,
        )


def read_model_spec(directory: str | Path) -> ModelSpec:
    """Read ``config.json`` of a model directory.

    Raises:
        ModelError: the file is missing or damaged, the architecture is unknown, or a key has a value whose
            meaning is not built. The message names file and key.
    """
    path = Path(directory) / "config.json"
    reader = JsonReader(path, read_json_object(path, what="model configuration"))
    architecture = _architecture(reader)
    family = FAMILIES[architecture]
    _refuse_unbuilt(reader)
    hidden = reader.integer("hidden_size")
    num_heads = reader.integer("num_attention_heads")
    num_layers = reader.integer("num_hidden_layers")
    num_kv_heads = reader.integer("num_key_value_heads", default=family.num_kv_heads or num_heads)
    if num_heads % num_kv_heads:
        raise reader.error("num_key_value_heads", f"does not divide num_attention_heads = {num_heads}")
    head_dim = reader.integer("head_dim", default=family.head_dim or hidden // num_heads)
    if head_dim % 2:
        raise reader.error("head_dim", "is odd", hint="rotary embeddings need an even head dimension")
    max_position = reader.integer("max_position_embeddings", default=family.max_position)
    attention_bias = family.may_have_bias and reader.flag("attention_bias", default=False)
    return ModelSpec(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=reader.integer("vocab_size"),
        max_position=max_position,
        rms_norm_eps=reader.number("rms_norm_eps", default=1e-6),
        rope=_read_rope(reader, max_position),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=False),
        dtype=_read_dtype(reader),
        has_qkv_bias=family.always_qkv_bias or attention_bias,
        has_o_bias=attention_bias,
        has_mlp_bias=family.may_have_mlp_bias and reader.flag("mlp_bias", default=False),
        has_qk_norm=family.has_qk_norm,
        windows=_read_windows(reader, family, num_layers),
        moe=_read_moe(reader, num_layers) if family.is_moe else None,
        bos_token_id=reader.optional_integer("bos_token_id"),
        eos_token_ids=reader.integers("eos_token_id"),
        path=str(Path(directory)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """What config.json leaves to the family; the values are the published defaults of each."""

    max_position: int = 32768
    num_kv_heads: int | None = None
    head_dim: int | None = None
    may_have_bias: bool = False
    always_qkv_bias: bool = False
    may_have_mlp_bias: bool = False
    has_qk_norm: bool = False
    is_moe: bool = False
    window: str = "none"
    """``none``; ``always``: sliding_window holds for all layers; ``flag``: only with use_sliding_window."""
    window_from_layer: bool = False
    """With ``flag``: only layers from max_window_layers on (or those named in layer_types)."""


FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family(max_position=2048, may_have_bias=True, may_have_mlp_bias=True),
    "MistralForCausalLM": _Family(max_position=131072, num_kv_heads=8, window="always"),
    "Qwen2ForCausalLM": _Family(num_kv_heads=32, always_qkv_bias=True, window="flag", window_from_layer=True),
    "Qwen3ForCausalLM": _Family(
        num_kv_heads=32,
        head_dim=128,
        may_have_bias=True,
        has_qk_norm=True,
        window="flag",
        window_from_layer=True,
    ),
    "Qwen3MoeForCausalLM": _Family(
        num_kv_heads=4, may_have_bias=True, has_qk_norm=True, is_moe=True, window="flag"
    ),
}
"""Architectures whose configuration is understood; the model registry has a row for each."""


def _architecture(reader: JsonReader) -> str:
    names = reader.raw.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise reader.error("architectures", "is missing or not a list of names")
    for name in names:
        if name in FAMILIES:
            return str(name)
    hint = f"known architectures: {', '.join(FAMILIES)}"
    if "auto_map" in reader.raw:
        hint += "; the model wants to run its own Python code (auto_map), which is never done"
    raise reader.error("architectures", f"unknown architecture {names[0]!r}", hint=hint)


def _refuse_unbuilt(reader: JsonReader) -> None:
    raw = reader.raw
    if raw.get("quantization_config"):
        scheme = _quantization_scheme(raw["quantization_config"])
        raise reader.error(
            "quantization_config",
            f"the checkpoint is quantised ({scheme}); quantised checkpoints are not built",
            hint="use the model's bfloat16, float16 or float32 checkpoint",
        )
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise reader.error("hidden_act", "is not silu")
    if raw.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        raise reader.error("partial_rotary_factor", "is not 1.0")
    if raw.get("is_encoder_decoder"):
        raise reader.error("is_encoder_decoder", "only decoder-only models are built")


def _quantization_scheme(said: Any) -> str:
    """The method and what else tells schemes apart, as the checkpoint names it."""
    if not isinstance(said, dict):
        return str(said)[:100]
    keys = (
        "format",
        "fmt",
        "bits",
        "w_bit",
        "group_size",
        "load_in_8bit",
        "load_in_4bit",
        "weight_block_size",
    )
    details = [f"{key} {said[key]}" for key in keys if said.get(key) not in (None, False)]
    return ", ".join([str(said.get("quant_method") or "method not named"), *details])[:200]


def _read_dtype(reader: JsonReader) -> str:
    for key in ("dtype", "torch_dtype"):
        value = reader.raw.get(key)
        if value is None:
            continue
        name = str(value).removeprefix("torch.")
        if name not in ("float32", "float16", "bfloat16"):
            raise reader.error(
                key, "is not a floating-point type we run", hint="float32, float16 or bfloat16"
            )
        return name
    return "float32"


def _read_rope(reader: JsonReader, max_position: int) -> RopeSpec:
    """``rope_scaling`` + ``rope_theta`` (transformers 4) or ``rope_parameters`` (transformers 5)."""
    key = "rope_parameters" if reader.raw.get("rope_parameters") else "rope_scaling"
    rope = reader.section(key)
    kind = str(rope.raw.get("rope_type") or rope.raw.get("type") or "default")
    if kind not in ROPE_KINDS:
        raise reader.error(key, f"rope type {kind!r} is not built", hint=f"known: {', '.join(ROPE_KINDS)}")
    if rope.raw.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        raise rope.error("partial_rotary_factor", "is not 1.0")
    theta = rope.number("rope_theta", default=reader.number("rope_theta", default=10000.0))
    if theta <= 0:
        raise reader.error("rope_theta", "must be positive")
    if kind == "default":
        return RopeSpec(theta=theta)
    original = reader.optional_integer("original_max_position_embeddings")
    if original is None:
        original = rope.integer("original_max_position_embeddings", default=max_position)
    factor_given = rope.raw.get("factor") is not None
    if not factor_given and kind != "yarn":
        raise rope.error("factor", f"is missing (rope type {kind})")
    factor = rope.number("factor") if factor_given else max_position / original
    if factor < 1:
        raise rope.error("factor", "must be at least 1")
    scaled = RopeSpec(kind=kind, theta=theta, factor=factor, original_max_position=original)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            raise rope.error("high_freq_factor", f"must exceed low_freq_factor = {low}")
        return replace(scaled, low_freq_factor=low, high_freq_factor=high)
    if kind == "yarn":
        return replace(
            scaled,
            attention_factor=rope.optional_number("attention_factor"),
            beta_fast=rope.optional_number("beta_fast") or 32.0,
            beta_slow=rope.optional_number("beta_slow") or 1.0,
            mscale=rope.optional_number("mscale"),
            mscale_all_dim=rope.optional_number("mscale_all_dim"),
            truncate=rope.flag("truncate", default=True),
        )
    return scaled


def _read_windows(reader: JsonReader, family: _Family, num_layers: int) -> tuple[int | None, ...]:
    if family.window == "none":
        return (None,) * num_layers
    if family.window == "flag" and not reader.flag("use_sliding_window", default=False):
        return (None,) * num_layers
    window = reader.optional_integer("sliding_window", default=4096)
    if window is None:
        return (None,) * num_layers
    if window < 1:
        raise reader.error("sliding_window", "must be positive")
    if not family.window_from_layer:
        return (window,) * num_layers
    kinds = reader.raw.get("layer_types")
    if kinds is None:
        first = reader.integer("max_window_layers", default=28)
        return tuple(window if i >= first else None for i in range(num_layers))
    known = {"sliding_attention": window, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(k not in known for k in kinds):
        raise reader.error("layer_types", f"must name {num_layers} layers from {sorted(known)}")
    return tuple(known[k] for k in kinds)


def _read_moe(reader: JsonReader, num_layers: int) -> MoeSpec | None:
    key = "num_experts" if "num_experts" in reader.raw else "num_local_experts"
    num_experts = reader.integer(key, default=128, minimum=0)
    step = reader.integer("decoder_sparse_step", default=1)
    dense = set(reader.integers("mlp_only_layers"))
    layers = frozenset(i for i in range(num_layers) if num_experts and i not in dense and (i + 1) % step == 0)
    if not layers:
        return None
    top_k = reader.integer("num_experts_per_tok", default=8)
    if top_k > num_experts:
        raise reader.error("num_experts_per_tok", f"exceeds {key} = {num_experts}")
    return MoeSpec(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=reader.integer("moe_intermediate_size", default=768),
        norm_topk_prob=reader.flag("norm_topk_prob", default=False),
        layers=layers,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """``generation_config.json``: the authors' sampling defaults; None = the file does not say."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def read_generation_defaults(directory: str | Path) -> GenerationDefaults:
    """Read ``generation_config.json``; an absent file is empty defaults.

    ``do_sample: false`` does not force greedy decoding: like other servers we take the numbers, not the mode.

    Raises:
        ModelError: the file is not a JSON object, or a value has the wrong type.
    """
    path = Path(directory) / "generation_config.json"
    if not path.exists():
        return GenerationDefaults()
    reader = JsonReader(path, read_json_object(path, what="generation configuration"))
    return GenerationDefaults(
        eos_token_ids=reader.integers("eos_token_id"),
        temperature=reader.optional_number("temperature"),
        top_p=reader.optional_number("top_p"),
        top_k=reader.optional_integer("top_k"),
        min_p=reader.optional_number("min_p"),
        repetition_penalty=reader.optional_number("repetition_penalty"),
        max_new_tokens=reader.optional_integer("max_new_tokens"),
    )
