"""From a StepPlan (host arrays) to a ModelInput (device tensors)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from xllm.engine.attention import StepPlanner
from xllm.engine.models import ModelInput
from xllm.engine.runner.step_plan import StepPlan


def build_model_input(plan: StepPlan, planner: StepPlanner, device: torch.device) -> ModelInput:
    """Plan attention and bring ids, positions and logits indices to the device."""
    return ModelInput(
        token_ids=to_device(plan.token_ids, device),
        positions=to_device(plan.positions, device),
        attention=planner.plan(plan.num_new, plan.seq_lens, plan.block_tables, plan.slots),
        logits_indices=to_device(plan.sample_tokens, device),
    )


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A tensor of the array's values; on the CPU it shares memory with arrays that nobody writes again."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
