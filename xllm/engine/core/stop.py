"""When a choice ends, and why."""

from __future__ import annotations

from xllm.engine.scheduler.sequence import Sequence
from xllm.types.output import FinishReason


def check_stop(seq: Sequence) -> tuple[FinishReason | None, int | None]:
    """(finish reason, stop token id) after the newest token; the id is None for end-of-sequence and length.

    ``min_tokens`` holds even where a mask could not: a stop id below it does not end the choice.
    """
    token = seq.token_ids[-1]
    request = seq.request
    if seq.num_output >= request.sampling.min_tokens:
        if token in seq.stop_ids:
            return "stop", token
        if token in request.eos_token_ids and not request.sampling.ignore_eos:
            return "stop", None
    if seq.num_output >= seq.max_output_tokens:
        return "length", None
    return None, None
