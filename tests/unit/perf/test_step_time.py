from __future__ import annotations

import json

import pytest

from xllm.errors import ConfigError
from xllm.perf.step_time import PROFILES, load_profile, profile_json, shape_of


def test_shape_counts_queries_times_their_context() -> None:
    rows = [(0, 3), (10, 1)]  # a prefill of 3 tokens: contexts 1, 2, 3; a decode at 11
    shape = shape_of(rows)
    assert (shape.num_tokens, shape.context_tokens, shape.query_context) == (4, 14, 1 + 2 + 3 + 11)


def test_decode_is_bound_by_bandwidth_and_prefill_by_compute() -> None:
    profile = PROFILES["h200-8b"]
    decode = profile.estimate(shape_of([(1000, 1)]))
    prefill = profile.estimate(shape_of([(0, 8192)]))
    assert decode.util_memory > 0.5 > decode.util_compute
    assert prefill.util_compute > 0.5 > prefill.util_memory
    assert decode.linear_s == pytest.approx(16.4e9 / (4.8e12 * profile.efficiency))
    two = profile.estimate(shape_of([(1000, 1), (1000, 1)]))
    assert decode.time_s < two.time_s < 1.1 * decode.time_s  # batching decodes is nearly free


def test_profiles_from_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.json"
    path.write_text(profile_json(PROFILES["cpu-0.6b"]))
    assert load_profile(str(path)) == PROFILES["cpu-0.6b"]
    broken = json.loads(path.read_text()) | {"bandwidth_bytes_s": 0}
    path.write_text(json.dumps(broken))
    with pytest.raises(ConfigError, match="bandwidth_bytes_s is 0"):
        load_profile(str(path))
    with pytest.raises(ConfigError, match="neither built in nor a file"):
        load_profile("no-such-profile")
