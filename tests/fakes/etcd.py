"""A real etcd on loopback, with its data in a directory of the test: start, kill, start again on the same port."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

START_S = 120.0
_SYSTEM_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_GIVEN: set[int] = set()


def free_port() -> int:
    """For a listener that comes later, or comes back: outside the range from which the system gives ports to everybody
    who connects or listens meanwhile, where there is room outside it."""
    end = int(_SYSTEM_PORTS.read_text().split()[0]) if _SYSTEM_PORTS.exists() else 0
    while True:
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, end) if end > 12_000 else 0))
            except OSError:  # somebody has it
                continue
            port: int = sock.getsockname()[1]
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


def find_etcd() -> str:
    """The program. Without it a test is skipped, or fails where ``REQUIRE_ETCD`` is 1, as in continuous integration:
    there a skip would hide that nothing about etcd has been proved."""
    binary = shutil.which("etcd")
    if binary is None and os.environ.get("REQUIRE_ETCD") == "1":
        pytest.fail("no etcd on this machine, and REQUIRE_ETCD is 1 (hint: apt-get install etcd-server)")
    if binary is None:
        pytest.skip("no etcd on this machine (apt-get install etcd-server)")
    return binary


class Etcd:
    """``endpoint`` stays the same over restarts."""

    def __init__(self, directory: Path, *flags: str, scheme: str = "http") -> None:
        self._binary = find_etcd()
        self._dir = directory
        self._flags = flags
        self._scheme = scheme
        self._peer = f"http://127.0.0.1:{free_port()}"
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Etcd:
        url = f"{self._scheme}://{self.endpoint}"
        log = (self._dir / "etcd.log").open("ab")
        command = [
            self._binary, "--data-dir", str(self._dir / "etcd"),
            "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer,
            "--initial-cluster", f"default={self._peer}", "--unsafe-no-fsync", *self._flags,
        ]  # fmt: skip
        if (
            "unsafe-no-fsync"
            not in subprocess.run([self._binary, "--help"], capture_output=True, text=True).stdout
        ):
            command.remove("--unsafe-no-fsync")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + START_S
        host, port = self.endpoint.split(":")
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self._dir / "etcd.log").read_text()[-2000:]
            try:
                if self._scheme == "https":
                    socket.create_connection((host, int(port)), timeout=1.0).close()
                else:
                    urllib.request.urlopen(f"{url}/health", timeout=1.0).close()
                return self
            except (OSError, urllib.error.URLError):
                time.sleep(0.05)
        raise AssertionError("etcd did not start: " + (self._dir / "etcd.log").read_text()[-2000:])

    def kill(self) -> None:
        """As kill -9 does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def __enter__(self) -> Etcd:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
