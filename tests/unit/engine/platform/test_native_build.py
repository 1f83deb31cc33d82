"""What a CPU gets and what it is told, by its flags."""

from __future__ import annotations

import pytest

from xllm.engine.platform.native_build import VARIANTS, usable_variants, what_is_lacking

AVX2 = "sse4_2 avx avx2 fma"
AVX512 = AVX2 + " avx512f avx512bw avx512vl avx512dq"


@pytest.mark.parametrize(
    ("flags", "best", "words"),
    [
        (AVX512 + " avx512_bf16", "avx512_bf16", []),
        (AVX512, "avx512", ["no bf16 dot products", "unless --dtype", "float32", "twice"]),
        (AVX2, "avx2", ["no AVX-512", "unless --dtype", "float32", "twice"]),
        (AVX2 + " avx512f", "avx2", ["no AVX-512"]),
        ("asimd", "portable", ["neither AVX-512 nor AVX2"]),
    ],
)
def test_a_cpu_gets_the_best_it_can_run_and_is_told_what_it_lacks(
    flags: str, best: str, words: list[str]
) -> None:
    usable = usable_variants(frozenset(flags.split()))
    assert usable[0] == best and usable[-1] == "portable"
    told = what_is_lacking(best)
    assert bool(told) == bool(words) and all(word in told for word in words)


def test_every_variant_has_its_words() -> None:
    assert [bool(what_is_lacking(variant)) for variant in VARIANTS] == [False, True, True, True]
