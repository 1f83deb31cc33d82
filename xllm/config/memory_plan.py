"""Weights + activations + reserve + KV against the memory there is, before anything is loaded.

Weights and KV are exact from the model's shape. Activations are an upper estimate of the reference path:
one layer's intermediate tensors for a full step, float32 logits for all running sequences, and one
sequence's gathered KV.
"""

from __future__ import annotations

from dataclasses import dataclass

from xllm.config.machine_facts import MachineFacts
from xllm.config.model_spec import ModelSpec
from xllm.config.schema import format_bytes
from xllm.types.kv_layout import DTYPE_BYTES

CPU_RESERVE_BYTES = 512 * 1024**2
"""Interpreters, torch and the edge process of a CPU server."""
GPU_RESERVE_BYTES = 1024**3
"""CUDA context, libraries' workspaces and fragmentation."""
CPU_KV_SHARE = 0.5
"""Of what is left on a CPU, KV takes at most this much by itself: the machine has other uses for its
memory."""
MAX_TIMED_BLOCKS = 65_536
"""A timed engine holds no KV bytes; its block table is still real."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """The terms of the sum, in bytes; ``left_bytes`` is what KV may take at most."""

    budget_bytes: int
    """Memory the engine may use in all."""
    budget_text: str
    """Where the budget comes from, for messages."""
    weights_bytes: int
    """Weights in the chosen number format."""
    activations_bytes: int
    """Upper estimate of a step's intermediate tensors and logits."""
    reserve_bytes: int
    """Runtime libraries and processes."""
    kv_bytes: int
    """What KV blocks take."""

    @property
    def fixed_bytes(self) -> int:
        """Everything but KV."""
        return self.weights_bytes + self.activations_bytes + self.reserve_bytes

    @property
    def left_bytes(self) -> int:
        """What KV may take at most; negative when the rest alone is too big."""
        return self.budget_bytes - self.fixed_bytes


def activation_terms(
    spec: ModelSpec, *, dtype: str, max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int
) -> tuple[int, int, int]:
    """Upper estimates in bytes: one layer's tensors per step token, logits per sequence, one gathered
    context."""
    intermediate = spec.intermediate_size
    if spec.moe is not None:
        intermediate = max(intermediate, spec.moe.top_k * spec.moe.intermediate_size)
    attention = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    per_token = 8 * spec.hidden_size + 3 * intermediate + 2 * attention
    gathered = 2 * max_model_len * spec.num_kv_heads * spec.head_dim
    return (
        4 * max_num_batched_tokens * per_token,
        4 * 3 * max_num_seqs * spec.vocab_size,
        DTYPE_BYTES[dtype] * gathered,
    )


def memory_budget(machine: MachineFacts, *, device: str, gpu_memory_utilization: float) -> tuple[int, str]:
    """Bytes the engine may use in all, and the words for it."""
    if device != "cuda":
        return machine.memory_available_bytes, "memory available now"
    if machine.gpu is None:
        return 0, "no GPU"
    share = int(machine.gpu.total_bytes * gpu_memory_utilization)
    if share <= machine.gpu.free_bytes:
        return share, f"{gpu_memory_utilization:g} of the GPU's memory"
    return machine.gpu.free_bytes, "free memory of the GPU"


def plan_kv_bytes(*, left_bytes: int, useful_bytes: int, least_bytes: int, device: str) -> tuple[int, str]:
    """KV memory when nobody says how much, and the reason.

    All that could ever be used, if it fits in the share KV may take; else that share; but ``least_bytes``
    (one sequence of the length asked for, or one block), or as much of it as there is room for, where that
    is more.
    """
    share = left_bytes if device == "cuda" else int(left_bytes * CPU_KV_SHARE)
    if useful_bytes <= share:
        return useful_bytes, "all that max_num_seqs sequences of max_model_len could use"
    if share < min(least_bytes, left_bytes):
        return min(least_bytes, left_bytes), "for one sequence, all that it needs or all there is"
    words = "what weights and activations leave"
    return max(share, 0), words if device == "cuda" else f"half of {words}"


def format_memory(plan: MemoryPlan) -> str:
    """The sum in one line, for logs and messages."""
    return (
        f"weights {format_bytes(plan.weights_bytes)} + activations {format_bytes(plan.activations_bytes)}"
        f" + reserve {format_bytes(plan.reserve_bytes)} + KV {format_bytes(plan.kv_bytes)}"
        f" of {format_bytes(plan.budget_bytes)} ({plan.budget_text})"
    )
