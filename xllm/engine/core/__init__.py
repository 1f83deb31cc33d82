"""The engine core: a synchronous state machine over scheduler and cache. Calls in, orders and outputs out.

admission_check.py  what a request must satisfy before it is queued; refusals are typed errors
stop.py             when a choice ends, and why
token_masks.py      StepMask rows for allowed_token_ids, bad_words and min_tokens
outputs.py          births of RequestOutput
deadlines.py        which requests run out of time next
engine_core.py      EngineCore: add, abort, next_batch, take_masks, on_result, on_io, tick, load, explain, check
"""
