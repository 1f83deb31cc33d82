"""EngineProcess: one engine as a child process of this one.

INVARIANTS
- The child never outlives the parent by more than about a second: it holds one end of a socket pair and leaves when
  the other end closes, whatever it is doing. (PR_SET_PDEATHSIG would follow the death of the starting *thread*.)
- ``start`` either returns a ready engine or raises with no process left.
- After ``close`` the child is reaped: no zombie. Deleting the object, and interpreter exit, close it too.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xllm
from xllm.base.model_files import find_model_dir
from xllm.base.phases import Span
from xllm.config.cluster import InstanceConfig, RegistryConfig
from xllm.config.schema import to_plain
from xllm.config.serve import EngineConfig, needs_weights
from xllm.engine.server.control import (
    LineChannel,
    PhaseDone,
    Ready,
    StartEngine,
    StartFailed,
    StopEngine,
    ToEngineProcess,
    ToParent,
    WeightsProgress,
)
from xllm.errors import DeadlineExceeded, InstanceLost, ProtocolError
from xllm.launch.log_pump import LogPump, write_to_stderr
from xllm.rpc.failure import from_failure
from xllm.types.instance import InstanceInfo

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 600.0
STOP_S = 0.5
"""How long a child that was told to stop may take before it gets SIGTERM, and again before SIGKILL."""

ParentChannel = LineChannel[ToParent, ToEngineProcess]


def _ignore_progress(done_bytes: int, total_bytes: int) -> None:
    """Nobody shows a progress bar."""


class EngineProcess:
    """A running engine. ``address`` and ``token`` are what :class:`xllm.rpc.client.EngineClient` needs."""

    def __init__(
        self,
        popen: subprocess.Popen[str],
        channel: ParentChannel,
        pump: LogPump,
        info: InstanceInfo,
        token: str,
        spans: Sequence[Span],
        total_s: float,
        private_dir: str,
    ) -> None:
        self.info = info
        self.token = token
        self.spans = tuple(spans)
        """The parts of the start, in order."""
        self.start_s = total_s
        """Of the start as a whole, as this process saw it."""
        self._popen = popen
        self._channel = channel
        self._end = weakref.finalize(self, _end_child, popen, channel, pump, private_dir)

    @property
    def address(self) -> str:
        """Where to connect."""
        return self.info.address

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        """Whether the child runs."""
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """The child's exit status once it has ended (negative: a signal), else None."""
        return self._popen.poll()

    @classmethod
    def start(
        cls,
        config: EngineConfig,
        *,
        token: str = "",
        registry: RegistryConfig | None = None,
        instance: InstanceConfig | None = None,
        timeout_s: float = READY_TIMEOUT_S,
        env: Mapping[str, str] | None = None,
        sink: Callable[[str], None] = write_to_stderr,
        on_weights: Callable[[int, int], None] = _ignore_progress,
    ) -> EngineProcess:
        """Start an engine and wait until it is ready. Blocks: call it from a thread where there is an event loop.

        ``token`` is its secret (empty: one is drawn); with a ``registry`` it publishes itself there as ``instance``.
        ``env`` is added to this process's environment, ``sink`` receives the child's log lines, ``on_weights``
        (done, total) bytes while weights are read.

        Raises:
            ConfigError, ModelError, CapacityError: what the engine itself raised.
            DeadlineExceeded: it was not ready in time.
            InstanceLost: it died; the message holds its last lines.
        """
        # A hub model is fetched here, where a terminal may show the progress bar; the child finds it in the cache.
        model = config.model
        find_model_dir(model.model, revision=model.revision, with_weights=needs_weights(config))
        began_s = time.monotonic()
        private_dir, endpoint = "", config.server.endpoint
        if endpoint == "auto":
            private_dir = tempfile.mkdtemp(prefix="xllm-")
            endpoint = f"unix:{private_dir}/engine.sock"
        token = token or secrets.token_hex(16)
        popen, channel, pump = _spawn(env, sink)
        done = False
        try:
            channel.send(
                StartEngine(
                    config=to_plain(config),
                    endpoint=endpoint,
                    token=token,
                    parent_pid=os.getpid(),
                    private_dir=private_dir,
                    registry=None if registry is None else to_plain(registry),
                    instance=None if instance is None else to_plain(instance),
                )
            )
            spans: list[Span] = []
            info = _await_ready(popen, channel, pump, spans, began_s + timeout_s, on_weights)
            total_s = time.monotonic() - began_s
            parts = ", ".join(f"{span.phase} {span.seconds:.2f} s" for span in spans)
            log.info("engine ready in %.2f s: %s", total_s, parts)
            process = cls(popen, channel, pump, info, token, spans, total_s, private_dir)
            done = True
            return process
        finally:
            if not done:
                _end_child(popen, channel, pump, private_dir)

    def wait(self, timeout_s: float) -> int:
        """Wait for the child's end.

        Raises:
            DeadlineExceeded: it still runs.
        """
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise DeadlineExceeded(f"the engine process has not ended within {timeout_s:g} s") from exc

    def close(self, drain_s: float = 0.0) -> None:
        """End the child: ask it (granting requests in flight ``drain_s``), then SIGTERM, then SIGKILL. Idempotent."""
        if self._end.alive and self.is_alive and self._channel.send(StopEngine(drain_s=drain_s)):
            try:
                self._popen.wait(drain_s + STOP_S)
            except subprocess.TimeoutExpired:
                log.warning("engine %s did not stop when asked", self.info.id)
        self._end()


def _spawn(
    env: Mapping[str, str] | None, sink: Callable[[str], None]
) -> tuple[subprocess.Popen[str], ParentChannel, LogPump]:
    ours, theirs = socket.socketpair()
    root = str(Path(xllm.__file__).resolve().parent.parent)
    full_env: dict[str, Any] = {**os.environ, **(env or {})}
    if Path(root).name not in (
        "site-packages",
        "dist-packages",
    ):  # those must not come before the standard library
        full_env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, full_env.get("PYTHONPATH", ""))))
    full_env["PYTHONUNBUFFERED"] = "1"
    try:
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "xllm.engine.server", "--control-fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=full_env,
            start_new_session=True,  # Ctrl-C is for the parent, which then decides how the child ends
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    assert popen.stdout is not None
    return popen, LineChannel(ours, ToParent), LogPump(popen.stdout, sink)


def _await_ready(
    popen: subprocess.Popen[str],
    channel: ParentChannel,
    pump: LogPump,
    spans: list[Span],
    deadline_s: float,
    on_weights: Callable[[int, int], None],
) -> InstanceInfo:
    while True:
        remaining_s = deadline_s - time.monotonic()
        try:
            message = channel.receive(max(remaining_s, 0.0))
        except DeadlineExceeded as exc:
            raise DeadlineExceeded(
                "the engine was not ready in time" + _done_so_far(spans),
                hint="allow it more time, or see its log",
            ) from exc
        except ProtocolError as exc:
            raise InstanceLost(
                f"the engine process said something else than it should: {exc.message}"
            ) from exc
        match message:
            case Ready():
                return message.info
            case PhaseDone():
                begin_s = message.end_s - message.seconds
                spans.append(Span("engine", message.phase, begin_s, message.seconds))
            case WeightsProgress():
                on_weights(message.done_bytes, message.total_bytes)
            case StartFailed():
                raise from_failure(message.failure)
            case None:
                raise _died(popen, pump, spans)


def _died(popen: subprocess.Popen[str], pump: LogPump, spans: Sequence[Span]) -> InstanceLost:
    try:
        status = f"with status {popen.wait(STOP_S)}"
    except subprocess.TimeoutExpired:
        status = "its channel"
    pump.join(STOP_S)
    return InstanceLost(
        f"the engine process ended {status} before it was ready{_done_so_far(spans)}\n{pump.tail()}",
        hint="a negative status is a signal: -9 usually means that the machine ran out of memory",
    )


def _done_so_far(spans: Sequence[Span]) -> str:
    return f" (done: {', '.join(span.phase for span in spans)})" if spans else ""


def _end_child(popen: subprocess.Popen[str], channel: ParentChannel, pump: LogPump, private_dir: str) -> None:
    """Make sure that the child is gone and reaped; at most a little more than 2 * STOP_S."""
    channel.close()  # end of file: the child leaves by itself
    for ask in (None, popen.terminate, popen.kill):
        if ask is not None:
            ask()
        try:
            popen.wait(STOP_S if ask is not None else STOP_S / 2)
            break
        except subprocess.TimeoutExpired:
            continue
    pump.join(STOP_S)
    if private_dir:
        shutil.rmtree(private_dir, ignore_errors=True)
