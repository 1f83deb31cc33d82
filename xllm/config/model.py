"""Which model is served and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require

DType = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "dummy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model, its tokenizer, its template and its number format."""

    model: str = opt("demo", "--model", "--model-path")
    """Hugging Face directory or hub id; ``demo`` is the small chat model that comes with the package."""
    tokenizer: str | None = opt(None, "--tokenizer", "--tokenizer-path")
    """Directory or hub id of the tokenizer; default: the model's own."""
    served_model_name: tuple[str, ...] = opt((), "--served-model-name")
    """Names clients may use in ``model``, the first one is reported; default: the model as given."""
    dtype: DType = opt("auto", "--dtype")
    """Number format of weights and activations; ``auto``: what the checkpoint says, where the device is
    good at it."""
    max_model_len: int | None = opt(None, "--max-model-len", "--context-length")
    """Longest prompt + output, in tokens; auto: the model's own limit, or what the KV memory can hold."""
    seed: int = opt(0, "--seed", "--random-seed")
    """Seed of dummy weights. A request that brings no seed gets a random one."""
    revision: str | None = opt(None, "--revision")
    """Branch, tag or commit of a hub model; default: its main branch."""
    load_format: LoadFormat = opt("auto", "--load-format")
    """``auto``: safetensors; ``dummy``: random weights made from the seed, for measuring without a
    checkpoint."""
    packed_weights_cache: str | None = opt(None, "--packed-weights-cache")
    """Directory where the weights are kept in the order of this machine's CPU kernels: later starts map that file in
    place of packing again, and engines of one machine share its memory. As large as the checkpoint in the run's dtype;
    default: not kept."""
    chat_template: str | None = opt(None, "--chat-template")
    """A Jinja file or an inline template in place of the model's own."""
    generation_config: str = opt("auto", "--generation-config")
    """Where default sampling values come from: ``auto`` = the model's generation_config.json, ``vllm`` =
    neutral defaults (temperature 1, top_p 1, no top_k), or a directory holding a generation_config.json."""

    def __post_init__(self) -> None:
        require(
            (
                (self.packed_weights_cache != "", "packed_weights_cache is empty: give a directory"),
                (bool(self.model), "model is empty: give a directory or a hub id"),
                (
                    self.max_model_len is None or self.max_model_len >= 2,
                    f"max_model_len is {self.max_model_len}: at least 2 (one prompt and one output token)",
                ),
                (0 <= self.seed < 2**63, f"seed is {self.seed}: use 0 to 2^63 - 1"),
            ),
            "model",
        )
