"""What holds for all tests: no stray configuration from the environment, GPU tests only where there is a GPU, the same
examples of hypothesis in every run and as much time for each as it needs."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from xllm.config.load import RESERVED_ENV
from xllm.config.schema import ENV_PREFIX

for _name in [name for name in os.environ if name.startswith(ENV_PREFIX) and name not in RESERVED_ENV]:
    del os.environ[_name]
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "xllm-tests-cache")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background ignores SIGINT for them and all their children; some tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network
settings.register_profile(
    "any machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch finds no GPU."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with tokenizer and chat template; read-only."""
    from tests.fakes.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))
