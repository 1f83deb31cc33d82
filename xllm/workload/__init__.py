"""Workload: when requests arrive, how long they are and what is in them. Pure, seeded, standard library only.

arrivals   arrival processes: at once, constant, gamma (Poisson is burstiness 1), on/off bursts, replay
lengths    length distributions: fixed, uniform, log-normal, drawn from a trace
prompt     PromptSample and the Codec protocol (what a dataset needs of a tokenizer)
datasets   random, prefix_repetition, sharegpt; prompts as token ids, and as text when a codec is given
"""

from __future__ import annotations
