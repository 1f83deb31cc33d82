"""NativeLayers: the layers of a model, each as one call of the CPU library.

Between the layers the residual stream stays in float32, whatever the dtype of the weights; inside a layer what leaves a
product is rounded to that dtype once. Nothing is allocated per layer, and threads meet at barriers instead of being
started for every operation.
"""

from __future__ import annotations

import ctypes

import torch
from torch import nn

from xllm.config.model_spec import ModelSpec
from xllm.engine.attention import NativeAttention
from xllm.engine.kernels.linear.native import PackedWeight
from xllm.engine.kernels.moe.native import PackedExperts, moe_args
from xllm.engine.kernels.paged_attention.native import attention_args
from xllm.engine.layers.linear import Linear
from xllm.engine.layers.mlp import GatedMLP
from xllm.engine.layers.moe import MoeMLP
from xllm.engine.layers.norm import RMSNorm
from xllm.engine.memory import KVMemory
from xllm.engine.models.decoder import CausalLM, DecoderLayer
from xllm.engine.models.hooks import LayerHooks
from xllm.engine.models.model_input import ModelInput
from xllm.engine.platform.native import (
    TYPES,
    AttentionArgs,
    HeadsArgs,
    LayerArgs,
    NativeLibrary,
    required_library,
)

MIN_WIDE_FLOPS = 1e9
"""Two milliseconds of one thread: beside them the barriers of a layer do not show."""


class NativeLayers:
    """Runs what ``CausalLM.forward`` runs; reads the model's own weights and keeps no copies."""

    def __init__(
        self,
        model: CausalLM,
        attention: NativeAttention,
        *,
        num_wide_threads: int = 1,
        min_wide_flops: float = MIN_WIDE_FLOPS,
        library: NativeLibrary | None = None,
    ) -> None:
        """The model must be one :func:`can_run_natively`.

        Args:
            num_wide_threads: of steps whose layers have at least ``min_wide_flops`` each in products; other steps have
                torch's number. No bit depends on it.
            library: in place of the one that serves; benchmarks measure other builds with it.
        """
        self._num_wide_threads = num_wide_threads
        self._min_wide_flops = min_wide_flops
        spec = model.spec
        self._layer_flops = (
            2.0 * (spec.num_active_params - spec.vocab_size * spec.hidden_size) / spec.num_layers
        )
        self.num_wide_steps = 0
        """Steps that had more threads than usual."""
        self._model = model
        self._attention = attention
        self._library = library or required_library()
        self._layers = [_layer_args(layer, model.spec) for layer in model.layers]

    @torch.inference_mode()
    def forward(self, inp: ModelInput, kv: KVMemory, hooks: LayerHooks) -> torch.Tensor:
        """Run the layers; stores the new KV in ``kv``.

        Returns:
            ``[T, D]`` after the final norm.

        Raises:
            StepInterrupted: by the hooks.
            CapacityError: the system gives no memory for a layer's work.
        """
        model, spec, library = self._model, self._model.spec, self._library
        assert model.embedding is not None and model.norm is not None, "all layers of the model"
        dtype = model.norm.weight.dtype
        kind, threads = TYPES[dtype], self._num_threads(len(inp.token_ids))
        x = model.embedding(inp.token_ids).to(torch.float32)
        cos, sin = model.rotary(inp.positions)
        heads = self._heads_args(inp, cos, sin, len(x))
        rows = self._attention.step_rows(inp.attention)
        args: AttentionArgs | None = None
        for index, layer in enumerate(self._layers):
            hooks.layer_ready(index)
            memory = kv.layer(index)
            if args is None:
                args = attention_args(
                    rows,
                    self._attention.strides(memory),
                    num_heads=spec.num_heads,
                    num_kv_heads=spec.num_kv_heads,
                    head_dim=spec.head_dim,
                    num_threads=threads,
                )
                args.scale = spec.head_dim**-0.5
                heads.is_paired = memory.is_paired
            args.window = spec.windows[index] or 0
            args.k = heads.k_pool = memory.k.data_ptr()
            args.v = heads.v_pool = memory.v.data_ptr()
            library.lib.xllm_layer(kind, layer, heads, args, x.data_ptr(), rows.key, threads)
            hooks.layer_done(index)
        hidden = torch.empty(x.shape, dtype=dtype)
        weight = model.norm.weight.data_ptr()
        library.lib.xllm_final_norm(
            kind, x.data_ptr(), len(x), weight, x.shape[1], spec.rms_norm_eps, hidden.data_ptr(), threads
        )
        return hidden

    def _num_threads(self, num_tokens: int) -> int:
        usual = torch.get_num_threads()
        if self._num_wide_threads <= usual or num_tokens * self._layer_flops < self._min_wide_flops:
            return usual
        self.num_wide_steps += 1
        return self._num_wide_threads

    def _heads_args(
        self, inp: ModelInput, cos: torch.Tensor, sin: torch.Tensor, num_tokens: int
    ) -> HeadsArgs:
        spec, metadata = self._model.spec, inp.attention
        written = metadata.write_tokens
        num_written = len(metadata.write_rows) // spec.num_kv_heads
        return HeadsArgs(
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            write_rows=metadata.write_rows.data_ptr(),
            write_tokens=None if written is None else written.data_ptr(),
            num_tokens=num_tokens,
            num_written=num_written,
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            is_all_written=written is None,
        )


def can_run_natively(model: CausalLM) -> bool:
    """Whether every layer is one the library knows, with packed weights, and the model is whole."""
    if model.embedding is None or model.norm is None or len(model.layers) != model.spec.num_layers:
        return False
    layers = [layer for layer in model.layers if isinstance(layer, DecoderLayer)]
    for layer in layers:
        mlp = layer.mlp
        is_sparse = (
            isinstance(mlp, MoeMLP) and mlp.packed is not None and isinstance(mlp.packed[0], PackedExperts)
        )
        if not (isinstance(mlp, GatedMLP) or is_sparse):
            return False
    linears = [module for module in model.layers.modules() if isinstance(module, Linear)]
    return all(isinstance(linear.packed, PackedWeight) for linear in linears)


def _layer_args(layer: nn.Module, spec: ModelSpec) -> LayerArgs:
    assert isinstance(layer, DecoderLayer)
    attention, mlp = layer.attention, layer.mlp
    args = LayerArgs(hidden=spec.hidden_size, eps=spec.rms_norm_eps)
    linears = {"qkv": attention.qkv, "out": attention.out}
    if isinstance(mlp, GatedMLP):
        args.intermediate = spec.intermediate_size
        linears |= {"gate_up": mlp.gate_up, "down": mlp.down}
    else:
        assert isinstance(mlp, MoeMLP) and mlp.packed is not None
        args.moe = ctypes.pointer(moe_args(*mlp.packed, mlp.spec.top_k, mlp.spec.norm_topk_prob))
    for name, linear in linears.items():
        setattr(args, name, linear.packed.data.data_ptr())
        setattr(args, f"{name}_bias", None if linear.bias is None else linear.bias.data_ptr())
    norms: dict[str, RMSNorm | None] = {
        "attention_norm": layer.attention_norm,
        "mlp_norm": layer.mlp_norm,
        "q_norm": attention.q_norm,
        "k_norm": attention.k_norm,
    }
    for name, norm in norms.items():
        setattr(args, name, None if norm is None else norm.weight.data_ptr())
    return args
