"""When a choice ends, and why."""

from __future__ import annotations

from xllm.engine.scheduler.sequence import Sequence
from xllm.types.output import FinishReason


def check_stop(seq: Sequence) -> tuple[FinishReason | None, int | None]:
    """(finish reason, stop token id) after the newest token; the id is None for end-of-sequence and length.

    ``min_tokens`` holds even where a mask could not: a stop id below it does not end the choice.
    """
    token = seq.token_ids[-1]
    if token in seq.end_ids and seq.num_output >= seq.request.sampling.min_tokens:
        return "stop", token if token in seq.stop_ids else None
    if len(seq.token_ids) >= seq.end_len:
        return "length", None
    return None, None
