from __future__ import annotations

from xllm.base.openmp import SPIN_COUNT, SPIN_MS, prepare_openmp


def test_spins_are_short_and_threads_are_ours() -> None:
    environ: dict[str, str] = {}
    prepare_openmp(3, environ)
    assert environ == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "GOMP_SPINCOUNT": SPIN_COUNT,
        "KMP_BLOCKTIME": SPIN_MS,
    }


def test_what_the_environment_says_stays() -> None:
    said = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "5"}
    environ = dict(said)
    assert set(prepare_openmp(3, environ)) == set(said)
    assert environ == {**said, "MKL_NUM_THREADS": "1"}
    environ = {"OMP_WAIT_POLICY": "active"}
    prepare_openmp(3, environ)
    assert environ == {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}


def test_places_are_ours_unless_somebody_else_places() -> None:
    environ: dict[str, str] = {}
    assert prepare_openmp(2, environ, cpus=(4, 6)) == ()
    assert (environ["OMP_PROC_BIND"], environ["OMP_PLACES"]) == ("true", "{4},{6}")
    environ = {"GOMP_CPU_AFFINITY": "0-1"}
    assert prepare_openmp(2, environ, cpus=(4, 6)) == ("GOMP_CPU_AFFINITY",)
    assert "OMP_PLACES" not in environ and "OMP_PROC_BIND" not in environ
