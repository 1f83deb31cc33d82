"""One ``xllm`` process with its output in a file."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
END_S = 60.0


class Process:
    """Started again and again with the same arguments; every life has its own generation."""

    def __init__(
        self, name: str, args: Sequence[str], directory: Path, *, prefix: Sequence[str] = ()
    ) -> None:
        """``prefix`` stands before the command and must become it (exec), so that signals meet the process."""
        self._prefix = tuple(prefix)
        self.name = name
        self.generation = 0
        self.is_stopped = False
        """By SIGSTOP, from here."""
        self.is_ending = False
        """By SIGTERM, from here."""
        self.is_ready = False
        """It has said that it serves, and nobody has ended it since."""
        self.killed: set[int] = set()
        """Generations that were killed: their connections break."""
        self._args = args
        self._log = directory / f"{name}.log"
        self._begins_at = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """Exit status of the last life."""
        return None if self._process is None else self._process.poll()

    @property
    def text(self) -> str:
        """All it ever said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        assert not self.is_alive, self.name
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self._log.open("ab") as log:
            self._begins_at = log.tell()
            command = [*self._prefix, sys.executable, "-m", "xllm.cli.main", *self._args]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        self.generation += 1
        self.is_stopped = self.is_ending = self.is_ready = False

    async def until(self, pattern: str, timeout_s: float = START_S) -> None:
        """Wait until this life has said something."""
        end_s = time.monotonic() + timeout_s
        while not re.search(pattern, self._log.read_bytes()[self._begins_at :].decode(errors="replace")):
            if not self.is_alive or time.monotonic() > end_s:
                raise AssertionError(f"{self.name} never said {pattern!r}:\n{self.text[-3000:]}")
            await asyncio.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        if self.is_alive:
            os.kill(self.pid, number)
            if number in (signal.SIGSTOP, signal.SIGCONT):
                self.is_stopped = number == signal.SIGSTOP
            self.is_ending = self.is_ending or number == signal.SIGTERM
            self.is_ready = self.is_ready and number in (signal.SIGSTOP, signal.SIGCONT)
            if number == signal.SIGKILL:
                self.killed.add(self.generation)

    async def wait(self, timeout_s: float = END_S) -> int:
        """Its exit status; killed when it takes too long, which is an error."""
        assert self._process is not None
        try:
            return await asyncio.to_thread(self._process.wait, timeout_s)
        except subprocess.TimeoutExpired as exc:
            self._process.kill()
            self._process.wait(10)
            raise AssertionError(f"{self.name} did not end in {timeout_s:g} s:\n{self.text[-3000:]}") from exc

    def destroy(self) -> None:
        if self.is_alive:
            assert self._process is not None
            self._process.kill()
            self._process.wait(10)
