"""Models: plain modules built from a layer range, and the way from a directory to a loaded one.

model_input.py   ModelInput: everything a forward reads
hooks.py         LayerHooks: what happens between layers
decoder.py       the decoder skeleton: embedding, layers, final norm, head
dense.py         Llama, Mistral, Qwen2, Qwen3
qwen3_moe.py     Qwen3-MoE
registry.py      architecture -> builder
safetensors.py   memory-mapped reading of one shard
checkpoint.py    the shards of a directory as one set of named tensors
arena.py         one stretch of memory for all weights on a CPU
reader.py        mapped shards -> that memory, in pieces, on several threads
packed_cache.py  that memory kept as a file, for later starts
loader.py        directory -> loaded model
"""

from __future__ import annotations

from xllm.engine.models.decoder import CausalLM
from xllm.engine.models.hooks import LayerHooks, NullHooks, StepInterrupted
from xllm.engine.models.loader import load_model
from xllm.engine.models.model_input import ModelInput
from xllm.engine.models.registry import MODEL_TABLE, build_model

__all__ = [
    "MODEL_TABLE",
    "CausalLM",
    "LayerHooks",
    "ModelInput",
    "NullHooks",
    "StepInterrupted",
    "build_model",
    "load_model",
]
