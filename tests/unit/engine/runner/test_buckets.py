from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xllm.engine.runner.buckets import Buckets, GraphChoice, GraphKey, LaunchMode
from xllm.errors import ConfigError


def test_sizes_are_fine_where_batches_are_small() -> None:
    assert Buckets(128).sizes == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128)
    assert Buckets(70).sizes == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 70)
    assert [Buckets(n).sizes for n in (1, 2, 3, 8, 9)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 8),
        (1, 2, 4, 8, 9),
    ]


@given(st.integers(1, 600), st.integers(1, 700))
def test_the_smallest_size_that_holds_the_step(limit: int, num_tokens: int) -> None:
    buckets = Buckets(limit)
    assert buckets.sizes == tuple(sorted(set(buckets.sizes)))
    size = buckets.try_pad(num_tokens)
    if num_tokens > limit:
        assert size is None
    else:
        assert size is not None and size == min(s for s in buckets.sizes if s >= num_tokens)
        assert size - num_tokens < 16


def test_decodes_run_full_prompts_piecewise_and_the_rest_eagerly() -> None:
    choice = GraphChoice(full=Buckets(32), piecewise=Buckets(100))
    assert choice.max_tokens == 100
    assert choice.choose(num_rows=5, num_tokens=5) == GraphKey(LaunchMode.FULL, 8)
    assert choice.choose(num_rows=5, num_tokens=17) == GraphKey(LaunchMode.PIECEWISE, 24)
    assert choice.choose(num_rows=40, num_tokens=40) == GraphKey(LaunchMode.PIECEWISE, 40)
    assert choice.choose(num_rows=1, num_tokens=101) is None
    decode_only = GraphChoice(full=Buckets(32), piecewise=None)
    assert decode_only.choose(num_rows=5, num_tokens=17) is None
    assert decode_only.choose(num_rows=33, num_tokens=33) is None
    assert GraphChoice(full=None, piecewise=Buckets(8)).choose(1, 1) == GraphKey(LaunchMode.PIECEWISE, 1)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError):
        Buckets(0)
