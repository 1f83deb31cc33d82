"""``xllm serve`` as a real process; its log is kept for the message of a failing test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.fakes.http import ask

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"(http://[\d.]+:\d+)")
START_S = 240.0


def until(condition: Callable[[], bool], timeout_s: float = 100.0) -> None:
    """Wait for a condition; the bound only keeps a broken test from hanging."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.01)


class Served:
    """``with Served(model_dir, "--dtype", "float32") as served: served.url``."""

    def __init__(self, model: Path | str, *flags: str, command: str = "serve") -> None:
        self._command = [sys.executable, "-m", "xllm.cli.main", command, str(model), "--port", "0", *flags]
        self.url = ""
        self.log: list[str] = []
        self._ready = threading.Event()

    def __enter__(self) -> Served:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_S) or not self.url:
            self.kill()
            raise AssertionError("xllm serve did not get ready:\n" + "".join(self.log))
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            found = READY.search(line)
            if found and not self.url:
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    @property
    def engine_pid(self) -> int:
        """The engine's process: the only child."""
        pid = self.process.pid
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        assert len(children) == 1, children
        return children[0]

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        total = 0.0
        for line in ask(f"{self.url}/metrics").raw.decode().splitlines():
            if re.match(rf"xllm:{name}[{{ ]", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def blocks(self) -> dict[str, int]:
        """KV blocks by state, as last reported."""
        states = ("free", "used", "cached", "leased", "pinned")
        return {state: int(self.metric("num_kv_blocks", state=state)) for state in states}

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._close_log()

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(100)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        self._close_log()

    def _close_log(self) -> None:
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
