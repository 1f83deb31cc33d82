"""StepInputs: the buffers a graph reads, sized for the largest one; each step writes a prefix and zeroes the padding.

A padding token is a row of its own with one query, one visible key and slot -1: it reads the first slot of the step's
first row, which surely exists, and writes nothing. Its hidden state is never looked at.

INVARIANTS
- Buffers are allocated once; a graph of n tokens always reads the same first n places.
- Padding has token id 0, position 0 and slot -1.
"""

from __future__ import annotations

import numpy as np
import torch

from xllm.engine.attention import StepPlanner
from xllm.engine.models import ModelInput
from xllm.engine.runner.model_input import to_device
from xllm.engine.runner.step_plan import StepPlan


class StepInputs:
    """See the module. ``current`` is what a graph reads: buffers, and the attention plan of this step."""

    def __init__(self, max_tokens: int, planner: StepPlanner, device: torch.device) -> None:
        self._planner = planner
        self._device = device
        self.token_ids = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self.positions = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._slots = np.full(max_tokens, -1, dtype=np.int64)
        self.current: ModelInput | None = None

    def fill(self, plan: StepPlan, num_tokens: int) -> ModelInput:
        """Write a step padded to ``num_tokens`` and plan its attention."""
        count = len(plan.token_ids)
        num_padding = num_tokens - count
        for buffer, values in ((self.token_ids, plan.token_ids), (self.positions, plan.positions)):
            buffer[:count].copy_(torch.from_numpy(values))
            buffer[count:num_tokens].zero_()
        self._slots[:count] = plan.slots
        self._slots[count:num_tokens] = -1
        ones = np.ones(num_padding, dtype=np.int64)
        attention = self._planner.plan(
            np.concatenate((plan.num_new, ones)),
            np.concatenate((plan.seq_lens, ones)),
            np.concatenate((plan.block_tables, np.repeat(plan.block_tables[:1], num_padding, axis=0))),
            self._slots[:num_tokens],
        )
        self.current = ModelInput(
            token_ids=self.token_ids[:num_tokens],
            positions=self.positions[:num_tokens],
            attention=attention,
            logits_indices=to_device(plan.sample_tokens, self._device),
        )
        return self.current
