"""Sampling: from logits to token ids, the same whatever else is in the batch.

noise.py       counter-based Gumbel noise: the exact bit recipe, vectorised
filters.py     min-p, top-k and top-p as one threshold per row
native.py      the same in the CPU library
reference.py   ``sample_gumbel``: temperature, filters, Gumbel-max; ``pick_largest``: greedy; torch, any device
scalar.py      the same for one row in plain Python, to read and to test against
"""

from __future__ import annotations

from xllm.engine.kernels.sampling.reference import pick_largest, sample_gumbel

__all__ = ["pick_largest", "sample_gumbel"]
