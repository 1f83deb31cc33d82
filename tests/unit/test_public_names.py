from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xllm


@pytest.mark.parametrize("name", xllm.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(xllm, name) is not None
    assert name in dir(xllm)


def test_the_stub_names_the_same() -> None:
    tree = ast.parse(Path(xllm.__file__).with_suffix(".pyi").read_text())
    names = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | {"__version__"} == set(xllm.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        _ = xllm.Engine


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, xllm; sys.exit(any(m.startswith('xllm.') for m in sys.modules) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0


def test_the_offline_api_loads_no_torch() -> None:
    code = "import sys; from xllm import LLM, SamplingParams; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0
