"""The random checkpoints in each system's format; made where missing."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.cpu_peers.install import run_step
from benchmarks.cpu_peers.systems import Settings

_HERE = Path(__file__).resolve().parent


def checkpoint(name: str, folder: Path, work: Path) -> None:
    """A Qwen3-shaped checkpoint with random weights, as Hugging Face writes it."""
    if not (folder / "model.safetensors").exists():
        print(f"making the {name} checkpoint ...", flush=True)
        run_step([sys.executable, str(_HERE / "make_model.py"), name, str(folder)], work / "install.log")


def convert(system: str, models: Iterable[str], settings: Settings) -> None:
    """Formats that only one system reads. Raises InstallFailed."""
    (settings.work / "models").mkdir(exist_ok=True)
    for model in models:
        source = str(settings.models[model])
        if system == "llamacpp" and not settings.gguf(model).exists():
            print(f"writing {model} as GGUF ...", flush=True)
            command = [str(settings.python(system)), str(_HERE / "make_gguf.py"), source]
            partial = settings.gguf(model).with_suffix(".partial")
            run_step([*command, str(partial)], settings.work / "install.log")
            partial.rename(settings.gguf(model))
        if system == "openvino" and not (settings.openvino(model) / "openvino_detokenizer.xml").exists():
            print(f"exporting {model} to OpenVINO ...", flush=True)
            command = [
                str(settings.python(system)), "-m", "optimum.commands.optimum_cli", "export", "openvino",
                "-m", source, "--task", "text-generation-with-past", str(settings.openvino(model)),
            ]  # fmt: skip
            run_step(command, settings.work / "install.log", env={"HF_HUB_OFFLINE": "1"})
