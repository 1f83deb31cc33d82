"""StepMask: from packed bits to logits that cannot be sampled."""

from __future__ import annotations

import numpy as np
import torch

from xllm.errors import InternalError
from xllm.types.batch import StepMask


def apply_mask(logits: torch.Tensor, mask: StepMask) -> None:
    """Set the logits of forbidden ids to minus infinity, in place; ``logits`` is ``[N, V]``.

    Raises:
        InternalError: the mask does not fit the step.
    """
    num_rows, vocab_size = len(mask.logit_rows), logits.shape[1]
    row_bytes = (mask.vocab_size + 31) // 32 * 4
    if mask.vocab_size != vocab_size or len(mask.bits) != num_rows * row_bytes:
        raise InternalError(
            f"mask of step {mask.step}: {len(mask.bits)} bytes for {num_rows} rows of {mask.vocab_size} ids; "
            f"logits have {vocab_size}"
        )
    if num_rows == 0:
        return
    if max(mask.logit_rows) >= logits.shape[0]:
        raise InternalError(
            f"mask of step {mask.step}: row {max(mask.logit_rows)} of {logits.shape[0]} logit rows"
        )
    packed = np.frombuffer(mask.bits, dtype=np.uint8).reshape(num_rows, row_bytes)
    forbidden = np.unpackbits(packed, axis=1, count=vocab_size, bitorder="little") == 0
    forbidden_on_device = torch.from_numpy(forbidden).to(logits.device)
    if num_rows == logits.shape[0]:
        logits.masked_fill_(forbidden_on_device, float("-inf"))
        return
    rows = torch.tensor(mask.logit_rows, dtype=torch.int64, device=logits.device)
    logits[rows] = logits[rows].masked_fill(forbidden_on_device, float("-inf"))
