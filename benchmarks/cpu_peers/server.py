"""One server: start, time to its first token, freeze and thaw, memory, stop.

A frozen server (SIGSTOP to every process of its tree) neither spins nor reads memory while another one is
measured.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cpu_peers.client import Answer, run_requests
from benchmarks.cpu_peers.machine import pss_mb, state, tree

_POLL_S = 0.02
_STOP_S = 15.0


class ServerFailed(Exception):
    """A server that did not start, or died."""


class Server:
    """A running server on ``port``."""

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], port: int, log: Path
    ) -> None:
        self.name = name
        self.command = list(command)
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._env = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pids(self) -> list[int]:
        """The processes of its tree."""
        return tree(self._process.pid) if self._process is not None else []

    @property
    def memory_mb(self) -> float:
        """PSS of the tree."""
        return pss_mb(self.pids)

    def start(self, timeout_s: float) -> float:
        """Seconds from starting the process to the first token of a 16-token prompt. Raises ServerFailed."""
        begin = time.perf_counter()
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    self.command, env=self._env, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as exc:
            raise ServerFailed(f"cannot be started: {exc}") from exc
        while time.perf_counter() < begin + timeout_s:
            answer = self._ask(max_tokens=1, timeout_s=timeout_s)
            if isinstance(answer, Answer):
                return answer.begin_s + answer.ttft_s - begin
            if self._process.poll() is not None:
                raise ServerFailed(f"ended with status {self._process.returncode}: {self.log_tail()}")
            time.sleep(_POLL_S)
        raise ServerFailed(f"no token within {timeout_s:g} s ({answer}): {self.log_tail()}")

    def ping(self) -> None:
        """A small request; makes it run at full speed again after a freeze. Raises ServerFailed."""
        answer = self._ask(max_tokens=4, timeout_s=120.0)
        if not isinstance(answer, Answer):
            raise ServerFailed(f"does not answer: {answer}: {self.log_tail()}")

    def freeze(self) -> None:
        """Stop every process of the tree, parents first; they stop when they are next scheduled, so wait for it."""
        for pid in self.pids:
            _signal(pid, signal.SIGSTOP)
        deadline = time.perf_counter() + _STOP_S
        while any(state(pid) not in "Tt" for pid in self.pids) and time.perf_counter() < deadline:
            time.sleep(_POLL_S)

    def thaw(self) -> None:
        """Let every process of the tree go on."""
        for pid in self.pids:
            _signal(pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the tree: politely, then not."""
        if self._process is None:
            return
        pids = self.pids
        self.thaw()
        _signal(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            pass
        for pid in {*pids, *self.pids}:
            _signal(pid, signal.SIGKILL)
        self._process.wait(timeout=_STOP_S)
        self._process = None

    def log_tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-1500:]

    def _ask(self, max_tokens: int, timeout_s: float) -> Answer | Exception:
        salt = int(time.time() * 1000) % 5000
        prompt = [400 + salt + index for index in range(16)]
        return asyncio.run(run_requests(self.url, [prompt], max_tokens, timeout_s=timeout_s))[0]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
