from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "gpu-check"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails() -> None:
    done = subprocess.run(
        [SCRIPT, "--python", sys.executable], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 2
    assert "no GPU" in done.stderr and "hint:" in done.stderr


def test_an_unknown_argument_is_refused() -> None:
    done = subprocess.run([SCRIPT, "--wheel"], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 2
    assert "unknown argument --wheel" in done.stderr
