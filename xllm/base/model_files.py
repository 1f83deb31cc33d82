"""Where a model's files are: the bundled demo model, a directory, or a hub id that is downloaded once."""

from __future__ import annotations

from pathlib import Path

from xllm.assets import demo_model_path
from xllm.errors import ModelError

DEMO_NAME = "demo"
CONFIG_FILES = ("*.json", "*.jinja", "tokenizer.model")
WEIGHT_FILES = ("*.safetensors",)


def find_model_dir(model: str, *, revision: str | None = None, with_weights: bool = True) -> Path:
    """The local directory of ``model``; downloads a hub id (with a progress bar) when it is not there yet.

    ``with_weights=False`` fetches only configuration and tokenizer, for planning and for the edge process.

    Raises:
        ModelError: no such directory, and the hub does not have it or cannot be reached.
    """
    if model == DEMO_NAME and not Path(model).is_dir():
        directory = demo_model_path()
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"the demo model is not in this installation: {directory} has no config.json",
                hint="give a model directory or a hub id",
            )
        return directory
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(
            f"there is no model directory {model!r}",
            hint="give a directory, or a hub id like Qwen/Qwen3-0.6B",
        )
    return _download(model, revision, with_weights=with_weights)


def _download(model: str, revision: str | None, *, with_weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*CONFIG_FILES, *(WEIGHT_FILES if with_weights else ())]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as exc:
        first_line = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ModelError(
            f"cannot download model {model!r}: {first_line}",
            hint="check the name and the network, or give a local directory; private models need HF_TOKEN",
        ) from exc
