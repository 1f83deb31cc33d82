"""``--profile-startup``: some steps of different shapes before the first request, so that their times are known.

The load is made of ordinary requests through the production core; they are aborted after a few steps, so that nothing
of them stays: not in the prefix cache, not in the history of output lengths.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator

from xllm.engine.core.engine_core import EngineCore
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

log = logging.getLogger(__name__)

DECODE_STEPS = 12
"""Steps per round."""
MAX_PROFILE_S = 20.0
"""After this no further round begins."""
_POLL_S = 0.005


def rounds(core: EngineCore) -> Iterator[list[Request]]:
    """Loads from one short prompt to many and long ones, within the engine's limits."""
    limits, rng = core.limits, random.Random(0)
    longest = max(1, limits.max_model_len - DECODE_STEPS - 1)
    for repetition in range(2):
        for num_seqs, length in ((1, 16), (1, limits.max_num_batched_tokens), (8, 64), (4, 256), (64, 32)):
            count = max(1, min(num_seqs, limits.max_num_seqs))
            size = max(1, min(length, longest, limits.max_num_batched_tokens))
            yield [
                Request(
                    id=f"profile-{repetition}-{num_seqs}-{length}-{index}",
                    prompt_token_ids=tuple(rng.randrange(core.vocab_size) for _ in range(size)),
                    seed=index,
                    sampling=SamplingParams(max_tokens=DECODE_STEPS + 1, ignore_eos=True, temperature=0.0),
                )
                for index in range(count)
            ]


async def profile_startup(
    core: EngineCore,
    add: Callable[[Request], None],
    abort: Callable[[str], None],
    is_dead: Callable[[], bool],
) -> None:
    """Run the rounds; ends early when the engine has failed or the time is up."""
    began_s = time.monotonic()
    for requests in rounds(core):
        last_step = core.step + DECODE_STEPS
        for request in requests:
            add(request)
        while core.step < last_step and not is_dead() and time.monotonic() - began_s < 2 * MAX_PROFILE_S:
            await asyncio.sleep(_POLL_S)
        for request in requests:
            abort(request.id)
        if is_dead() or time.monotonic() - began_s > MAX_PROFILE_S:
            break
    while core.num_inflight_steps and not is_dead() and time.monotonic() - began_s < 3 * MAX_PROFILE_S:
        await asyncio.sleep(_POLL_S)
    core.reset_prefix_cache()
    log.info(
        "step times: profiled %d steps in %.1f s, median error %.0f %%",
        core.step, time.monotonic() - began_s, 100 * core.times.error,
    )  # fmt: skip
