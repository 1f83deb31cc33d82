from __future__ import annotations

from pathlib import Path

import pytest

from xllm.assets import demo_model_path
from xllm.base.model_files import find_model_dir
from xllm.errors import ModelError


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_model_dir(str(tmp_path)) == tmp_path


def test_demo_is_in_the_package() -> None:
    assert find_model_dir("demo") == demo_model_path()
    assert (demo_model_path() / "config.json").is_file()


@pytest.mark.parametrize("model", ["/no/such/dir", "./nothing", "a/b/c", "plainword"])
def test_a_missing_directory_is_named(model: str) -> None:
    with pytest.raises(ModelError, match="no model directory"):
        find_model_dir(model)


def test_a_hub_model_without_a_network_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot download model 'nobody/nothing'"):
        find_model_dir("nobody/nothing", with_weights=False)
