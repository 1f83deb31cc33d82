"""Network namespaces: an engine on a network of its own, whose cable is pulled.

What a proxy cannot show: nobody answers, resets or closes; packets vanish, in the kernel, with everything that TCP does
about it. Needs the right to make namespaces (root, or a container that grants it).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator


def why_not() -> str | None:
    """Why this machine grants no namespaces; None: it does."""
    if shutil.which("ip") is None:
        return "there is no ip command (Debian: apt-get install iproute2)"
    try:
        with Namespace(0).made():
            return None
    except subprocess.CalledProcessError as exc:
        return f"{' '.join(exc.cmd)}: {exc.stderr.strip()}"


class Namespace:
    """One network with two ends: ``outer`` here, ``inner`` in there; ``number`` (< 64) keeps several apart."""

    def __init__(self, number: int) -> None:
        tag = os.getpid() % 50_000
        self.name = f"chaos-{tag}-{number}"
        self._link = f"c{tag}n{number}"
        net = f"10.{64 + tag % 128}.{number}"
        self.outer, self.inner = f"{net}.1", f"{net}.2"

    @contextlib.contextmanager
    def made(self) -> Iterator[Namespace]:
        """It is there inside the block."""
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            _ip("addr", "add", f"{self.outer}/30", "dev", self._link)
            _ip("link", "set", self._link, "up")
            self._inside("addr", "add", f"{self.inner}/30", "dev", "eth0")
            self._inside("link", "set", "lo", "up")
            self._inside("link", "set", "eth0", "up")
            yield self
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self.name)  # the link goes with it

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command that is to run in there."""
        return "ip", "netns", "exec", self.name

    def partition(self) -> None:
        """Nothing comes through any more, in either direction."""
        self._inside("link", "set", "eth0", "down")

    def mute(self) -> None:
        """What is sent to it arrives; whatever it sends vanishes."""
        self._inside("route", "add", "blackhole", f"{self.outer}/32")

    def heal(self) -> None:
        """As at the beginning; a good network stays one."""
        self._inside("link", "set", "eth0", "up")
        with contextlib.suppress(subprocess.CalledProcessError):
            self._inside("route", "del", "blackhole", f"{self.outer}/32")

    def _inside(self, *args: str) -> None:
        _ip("-n", self.name, *args)


def _ip(*args: str) -> None:
    subprocess.run(("ip", *args), check=True, capture_output=True, text=True, timeout=60)
