"""The routers: how each is installed and started over the same number of instances, and how its tokens are read.

xllm      ``xllm service`` over timed engines (production brain and RPC, no model): tokenises, routes, detokenises.
sglang    sglang-router, a compiled proxy, over bare backends.
litellm   LiteLLM's proxy, in Python, over bare backends.
direct    no router: the client asks the backends, which shows what of a latency is the client's own.

A peer lives in a virtual environment of its own; one that cannot be installed or started is reported with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.cpu_peers.install import InstallFailed, run_step
from benchmarks.router_load.client import API_KEY
from xllm.bench.startup import free_port
from xllm.perf.step_time import PROFILES, profile_json

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "xllm" / "assets" / "demo_model"
PACKAGES = {"sglang": ["sglang-router==0.3.2"], "litellm": ["litellm[proxy]==1.106.2"]}
START_S = 90.0
NUMBERED = re.compile(rb"id: [^\n]*:([1-9]\d*)\n")
"""An event of xLLM: its id ends with the number of tokens so far; 0 is the role event."""
STAMPED = re.compile(rb'"content": ?"(\d+\.\d+)"')
"""An event of a stamped backend, as it is or written anew by a router."""


@dataclass(slots=True)
class Running:
    """A router that takes requests."""

    urls: list[str]
    """Where chat requests go; more than one: clients take turns."""
    pattern: re.Pattern[bytes]
    pids: list[int]
    """Of the router alone."""
    upstream_pids: list[int]
    notes: list[Path] = field(default_factory=list)
    """What stamped engines write when they end; none: tokens are stamps."""

    def end_engines(self) -> None:
        """Let stamped engines write their notes; the router has nobody to ask from then on."""
        for pid in self.upstream_pids if self.notes else ():
            os.kill(pid, signal.SIGTERM)
        end_s = time.monotonic() + START_S
        while not all(path.exists() for path in self.notes):
            assert time.monotonic() < end_s, "an engine did not end"
            time.sleep(0.05)


def install(name: str, work: Path, *, may_install: bool) -> None:
    """Make sure a peer is there. Raises InstallFailed."""
    marker = work / name / "installed"
    wanted = " ".join(PACKAGES[name])
    if marker.exists() and marker.read_text() == wanted:
        return
    if not may_install:
        raise InstallFailed(f"{wanted} is not installed; --install does it")
    work.mkdir(parents=True, exist_ok=True)
    python = work / name / "bin" / "python"
    log = work / "install.log"
    if not python.exists():
        run_step([sys.executable, "-m", "venv", str(work / name)], log)
    run_step([str(python), "-m", "pip", "install", "-q", *PACKAGES[name]], log)
    marker.write_text(wanted)


@contextlib.contextmanager
def running(
    name: str, *, num_instances: int, step_s: float, work: Path, flags: Sequence[str] = ()
) -> Iterator[Running]:
    """Start a router and its instances; a step takes ``step_s`` on each. Everything ends with the block."""
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        start = Starter(stack, Path(folder))
        if name == "xllm":
            yield _start_xllm(start, num_instances, step_s, flags)
        else:
            yield _start_peer(start, name, num_instances, step_s, work)


class Starter:
    """Starts processes that end with the stack, the last one first."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.folder = folder
        self._stack = stack
        self._num = 0

    def __call__(self, command: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        self._num += 1
        log = self._stack.enter_context((self.folder / f"{self._num}.log").open("wb"))
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **env}
        )
        self._stack.callback(_end, process)
        return process

    def wait_for(self, url: str, process: subprocess.Popen[bytes]) -> None:
        """Until ``url`` answers with a success."""
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(url, timeout=5).close()
                return
            if process.poll() is not None:
                break
            time.sleep(0.1)
        tail = b"".join(path.read_bytes()[-1500:] for path in sorted(self.folder.glob("*.log")))
        said = tail.decode(errors="replace").strip()[-800:]
        raise RuntimeError(f"it did not come up: {said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_service(
    start: Starter, sockets: Sequence[Path], model: str, flags: Sequence[str]
) -> tuple[str, subprocess.Popen[bytes]]:
    """Wait until engines listen at ``sockets``, start a service over them; its URL once it is ready."""
    end_s = time.monotonic() + START_S
    while not all(path.exists() for path in sockets):
        assert time.monotonic() < end_s, "an engine did not start"
        time.sleep(0.1)
    port = free_port()
    endpoints = [word for path in sockets for word in ("--engine", f"unix:{path}")]
    service = start(
        [sys.executable, "-m", "xllm.cli.main", "service", model, "--served-model-name", "m",
         "--port", str(port), *endpoints, *flags]
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    start.wait_for(f"{url}/ready", service)
    return url, service


def _start_xllm(start: Starter, num_instances: int, step_s: float, flags: Sequence[str]) -> Running:
    profile = start.folder / "profile.json"
    profile.write_text(profile_json(replace(PROFILES["instant"], name="paced", overhead_s=step_s)))
    notes = [start.folder / f"notes-{number}.json" for number in range(num_instances)]
    sockets = [start.folder / f"{number}.sock" for number in range(num_instances)]
    engines = [
        start(
            [
                sys.executable, "-m", "benchmarks.router_load.stamped_engine", str(note),
                "engine", str(MODEL), "--executor", f"timed:{profile}", "--endpoint", f"unix:{path}",
                "--max-model-len", "1024", "--max-num-seqs", "512", "--num-gpu-blocks-override", "40000",
            ]
        )
        for note, path in zip(notes, sockets, strict=True)
    ]  # fmt: skip
    url, service = start_service(start, sockets, str(MODEL), flags)
    return Running(
        [f"{url}/v1/chat/completions"], NUMBERED, [service.pid], [each.pid for each in engines], notes
    )


def _start_peer(start: Starter, name: str, num_instances: int, step_s: float, work: Path) -> Running:
    ports = [free_port() for _ in range(num_instances)]
    backends = [
        start([sys.executable, "-m", "benchmarks.router_load.stamped_backend", str(port), str(step_s)])
        for port in ports
    ]
    upstreams = [f"http://127.0.0.1:{port}" for port in ports]
    for url, backend in zip(upstreams, backends, strict=True):
        start.wait_for(f"{url}/health", backend)
    upstream_pids = [each.pid for each in backends]
    if name == "direct":
        return Running([f"{url}/v1/chat/completions" for url in upstreams], STAMPED, [], upstream_pids)
    port = free_port()
    router = start(_PEERS[name](start, work, port, upstreams), **_PEER_ENVIRONMENT)
    url = f"http://127.0.0.1:{port}"
    start.wait_for(f"{url}/{_READY[name]}", router)
    return Running([f"{url}/v1/chat/completions"], STAMPED, [router.pid], upstream_pids)


def _sglang(start: Starter, work: Path, port: int, upstreams: Sequence[str]) -> list[str]:
    return [
        str(work / "sglang" / "bin" / "sglang-router"), "launch", "--host", "127.0.0.1", "--port", str(port),
        "--worker-urls", *upstreams, "--policy", "round_robin", "--log-level", "error",
        "--prometheus-port", str(free_port()),
    ]  # fmt: skip


def _litellm(start: Starter, work: Path, port: int, upstreams: Sequence[str]) -> list[str]:
    rows = [
        {
            "model_name": "m",
            "litellm_params": {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for url in upstreams
    ]
    config = start.folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": rows, "litellm_settings": {"telemetry": False}}))  # is YAML
    return [
        str(work / "litellm" / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1",
        "--port", str(port), "--num_workers", "1",
    ]  # fmt: skip


_PEERS = {"sglang": _sglang, "litellm": _litellm}
_READY = {"sglang": "readiness", "litellm": "health/readiness"}
_PEER_ENVIRONMENT = {
    "LITELLM_MASTER_KEY": API_KEY,
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
