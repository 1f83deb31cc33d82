"""Fits of earlier runs on disk: one small JSON file per (machine, shape, dtype) under the user's cache directory.

A file that is missing, unreadable or damaged is no error: it is logged and the prior is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

from xllm.config.model_spec import ModelSpec
from xllm.perf.learned import NAMES, LearnedStepTime, find_fault

log = logging.getLogger(__name__)

FORMAT = 1
MIN_SAMPLES = 64
"""A fit from fewer steps is not worth keeping."""


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/xllm/step_time``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "xllm" / "step_time"


def fit_path(spec: ModelSpec, *, device_name: str, num_threads: int, dtype: str) -> Path:
    """Where the fit of a model shape on a machine is kept."""
    moe = spec.moe
    facts = (
        FORMAT, device_name, num_threads, dtype, spec.architecture, spec.hidden_size, spec.intermediate_size,
        spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.vocab_size,
        None if moe is None else (moe.num_experts, moe.top_k, moe.intermediate_size, len(moe.layers)),
    )  # fmt: skip
    return cache_dir() / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json"


def try_load_fit(path: Path) -> tuple[float, ...] | None:
    """The factors in a file, or None; a damaged file is logged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        factors = tuple(float(value) for value in stored["factors"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        log.warning("step-time fit %s cannot be read (%s); starting from the prior", path, exc)
        return None
    fault = find_fault(factors) if stored.get("format") == FORMAT else f"format {stored.get('format')!r}"
    if fault:
        log.warning("step-time fit %s: %s; starting from the prior", path, fault)
        return None
    return factors


def save_fit(path: Path, model: LearnedStepTime) -> bool:
    """Write the fit, replacing the file as a whole; False when it is too young or cannot be written."""
    if model.num_samples < MIN_SAMPLES:
        return False
    stored = {
        "format": FORMAT,
        "prior": model.prior.name,
        "names": NAMES,
        "factors": model.factors,
        "num_samples": model.num_samples,
        "error": model.error,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(json.dumps(stored, indent=1) + "\n")
        Path(file.name).replace(path)
    except OSError as exc:
        log.warning("step-time fit %s cannot be written: %s", path, exc)
        return False
    return True
