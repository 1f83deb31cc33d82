"""`bench startup`: how long a server takes from process start to its first token, line by line.

The stages are observed from outside (a TCP connection, an HTTP status, a streamed token), so any OpenAI server
that can be started by a command is measured alike. What happens in between comes from the server's log, where it says
so as ``xllm serve`` does; memory and processor time come from the kernel, right after the first token.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from xllm.base.phases import SPANS_MARK, Span, parse_spans
from xllm.bench.load import RequestSpec, send
from xllm.bench.openai_client import OpenAIClient
from xllm.bench.processes import ProcessCost, measure_tree
from xllm.config.schema import format_bytes
from xllm.errors import DeadlineExceeded, InstanceError

_POLL_S = 0.01
_END_GRACE_S = 15.0
_LOG_LINES = 30


@dataclass(frozen=True, slots=True)
class StartupResult:
    """Seconds since the process was started."""

    port_open_s: float
    ready_s: float
    first_token_s: float
    phases: tuple[Span, ...] = ()
    """Of the server's processes, by begin, in seconds since its first process was started; some run side by side."""
    processes: tuple[ProcessCost, ...] = ()
    """When the first token had come."""

    @property
    def pss_bytes(self) -> int:
        """Memory of all processes, pages they share counted once."""
        return sum(process.pss_bytes for process in self.processes)

    @property
    def cpu_s(self) -> float:
        """Processor time of all processes."""
        return sum(process.cpu_s for process in self.processes)

    def as_json(self) -> dict[str, Any]:
        """Keys with units."""
        return {
            "port_open_s": self.port_open_s,
            "ready_s": self.ready_s,
            "first_token_s": self.first_token_s,
            "phases": [asdict(span) for span in self.phases],
            "cpu_s": self.cpu_s,
            "pss_bytes": self.pss_bytes,
            "processes": [process.as_json() for process in self.processes],
        }


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def format_startup(results: Sequence[StartupResult]) -> str:
    """The console block; several runs show their median and range."""
    lines = [f"{' Startup Benchmark Result ':=^50}"]
    labels = {
        "port_open_s": "Process start to port open (s):",
        "ready_s": "Process start to /ready (s):",
        "first_token_s": "Process start to first token (s):",
    }
    for key, label in labels.items():
        values = [result.as_json()[key] for result in results]
        text = f"{label:<40} {statistics.median(values):<10.2f}"
        if len(values) > 1:
            text += f" (of {len(values)}: {min(values):.2f} to {max(values):.2f})"
        lines.append(text.rstrip())
    lines += _budget_lines(sorted(results, key=lambda result: result.first_token_s)[len(results) // 2])
    lines.append("=" * 50)
    return "\n".join(lines)


def _budget_lines(result: StartupResult) -> list[str]:
    """Line by line what one start consists of, and what its processes cost."""
    lines = []
    if result.phases:
        lines.append(f"{'process, phase':<48} {'from (s)':>8} {'took (s)':>8}")
        lines += [
            f"{f'{span.process}: {span.phase}':<48} {span.begin_s:8.2f} {span.seconds:8.2f}"
            for span in result.phases
        ]
        took_s = result.first_token_s - result.ready_s
        lines.append(f"{'client: first request to first token':<48} {result.ready_s:8.2f} {took_s:8.2f}")
    for process in result.processes:
        lines.append(
            f"{process.command} ({process.num_threads} threads): {process.cpu_s:.2f} s of CPU,"
            f" PSS {format_bytes(process.pss_bytes)}"
            f" ({format_bytes(process.pss_anon_bytes)} own, {format_bytes(process.pss_file_bytes)} of files)"
        )
    if result.processes:
        lines.append(f"together: {result.cpu_s:.2f} s of CPU, PSS {format_bytes(result.pss_bytes)}")
    return lines


async def measure_startup(
    command: Sequence[str], base_url: str, *, timeout_s: float = 600.0, body: dict[str, Any] | None = None
) -> StartupResult:
    """Start ``command``, watch ``base_url`` come alive, end the process.

    Raises InstanceError with the end of the log when the process dies, DeadlineExceeded after ``timeout_s``.
    """
    with tempfile.TemporaryFile() as log:
        start_s = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        watch = asyncio.create_task(_watch(base_url, start_s, body or {}))
        death = asyncio.create_task(process.wait())
        try:
            done, _ = await asyncio.wait(
                {watch, death}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if watch in done:
                seen = watch.result()
                return replace(
                    seen,
                    processes=tuple(measure_tree(process.pid)),
                    phases=tuple(parse_spans(_phase_line(log.fileno()))),
                )
            tail = _tail(log.fileno())
            if death in done:
                raise InstanceError(f"the server ended with status {death.result()} while starting:\n{tail}")
            raise DeadlineExceeded(f"the server gave no token within {timeout_s:g} s; its log ends:\n{tail}")
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await _end(process, death)


async def _watch(base_url: str, start_s: float, body: dict[str, Any]) -> StartupResult:
    host, _, port = base_url.removeprefix("http://").partition(":")
    while not await _is_open(host, int(port)):
        await asyncio.sleep(_POLL_S)
    port_open_s = time.perf_counter() - start_s
    async with OpenAIClient(base_url) as client:
        path = "/ready"
        while (status := await client.get_status(path)) != 200:
            path = "/health" if status == 404 else path
            await asyncio.sleep(_POLL_S)
        ready_s = time.perf_counter() - start_s
        model = await client.first_model()
        payload = {"model": model["id"], "prompt": "Hello", "max_tokens": 1, "stream": True, **body}
        record = await send(client, RequestSpec("/v1/completions", payload, 0))
        if record.error is not None:
            raise InstanceError(f"the server is ready but its first request failed: {record.error}")
        return StartupResult(port_open_s, ready_s, record.started_s + record.ttft_s - start_s)


async def _is_open(host: str, port: int) -> bool:
    try:
        # Not wait_for: before Python 3.12 it swallows a cancellation that meets a refused connection.
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _tail(fileno: int) -> str:
    """End of the log; pread leaves the offset alone, which the child shares."""
    size = os.fstat(fileno).st_size
    start = max(0, size - 16_384)
    text = os.pread(fileno, size - start, start).decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-_LOG_LINES:])


def _phase_line(fileno: int) -> str:
    text = os.pread(fileno, os.fstat(fileno).st_size, 0).decode("utf-8", "replace")
    return next((line.partition(SPANS_MARK)[2] for line in text.splitlines() if SPANS_MARK in line), "")


async def _end(process: asyncio.subprocess.Process, death: asyncio.Task[int]) -> None:
    """Ask the server to end, then insist."""
    if process.returncode is None:
        process.terminate()
        _, alive = await asyncio.wait({death}, timeout=_END_GRACE_S)
        if alive:
            process.kill()
    await death
