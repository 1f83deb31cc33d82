from __future__ import annotations

from xllm.base.openmp import SPIN_COUNT, prepare_openmp


def test_spins_are_short_and_threads_are_ours() -> None:
    environ: dict[str, str] = {}
    prepare_openmp(3, environ)
    assert environ == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": SPIN_COUNT}


def test_what_the_environment_says_stays() -> None:
    said = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "7"}
    environ = dict(said)
    prepare_openmp(3, environ)
    assert environ == said
    environ = {"OMP_WAIT_POLICY": "active"}
    prepare_openmp(3, environ)
    assert environ == {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "3"}
