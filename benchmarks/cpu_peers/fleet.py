"""The running servers: started when needed, frozen unless it is their turn, measured between two bandwidth probes."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu_peers.client import Answer, AnswerError, run_requests
from benchmarks.cpu_peers.machine import available_mb, busy_s, own_s, read_files
from benchmarks.cpu_peers.record import Record
from benchmarks.cpu_peers.server import Server, ServerFailed
from benchmarks.cpu_peers.systems import Launch
from benchmarks.cpu_peers.workloads import Workload, make_prompts

_RESERVE_MB = 1000
_START_TIMEOUT_S = 600.0
_MAX_BANDWIDTH_CHANGE = 0.15


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers of one run, and a row for the record."""

    answers: list[Answer | AnswerError]
    row: dict[str, Any]


class Fleet:
    """One server per system at most."""

    def __init__(
        self,
        launch: Callable[[str, Workload], Launch],
        probe: Callable[[], float],
        record: Record,
        logs: Path,
        max_foreign: float,
        seed: int,
    ) -> None:
        """``launch`` says how a system is started for a workload, ``probe`` returns the bandwidth in GB/s."""
        self.record = record
        self.seed = seed
        self._launch = launch
        self._probe = probe
        self._logs = logs
        self._max_foreign = max_foreign
        self._servers: dict[str, Server] = {}

    def ensure(self, system: str, workload: Workload) -> Server:
        """A frozen server ready for the workload. Raises ServerFailed."""
        wanted = self._launch(system, workload)
        server = self._servers.get(system)
        if server is not None and server.command == list(wanted.command) and server.pids:
            return server
        self.stop(system)
        if available_mb() < wanted.memory_mb + _RESERVE_MB:
            raise ServerFailed(
                f"{available_mb():.0f} MB are free and it may take {wanted.memory_mb}; "
                "hint: fewer --systems at a time, or a smaller --kv-gb"
            )
        read_files(wanted.files)
        log = self._logs / f"{system}.log"
        server = self._servers[system] = Server(system, wanted.command, wanted.env, wanted.port, log)
        try:
            first_s = server.start(_START_TIMEOUT_S)
        except ServerFailed as exc:
            self.stop(system)
            raise ServerFailed(f"$ {' '.join(wanted.command)}\n{exc}") from exc
        row = {"system": system, "model": workload.model, "first_token_s": round(first_s, 3)}
        self.record.add("starts", {**row, "pss_mb": round(server.memory_mb)})
        print(f"  {system}: first token after {first_s:.2f} s, {server.memory_mb:.0f} MB", flush=True)
        server.freeze()
        return server

    def restart(self, system: str, workload: Workload) -> float:
        """Stop and start; seconds to the first token. Raises ServerFailed."""
        self.stop(system)
        self.ensure(system, workload)
        return float(self.record.data["starts"][-1]["first_token_s"])

    def warm_up(self, server: Server, workload: Workload) -> None:
        """The workload's shape once, short, unmeasured."""
        prompts = make_prompts(workload, self.seed, -1, workload.warm_prompts)
        with _awake(server):
            asyncio.run(run_requests(server.url, prompts, min(8, workload.output_tokens)))

    def measure(
        self,
        server: Server,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        times_s: Sequence[float] | None = None,
    ) -> Measured:
        """One run while everybody else is frozen. Raises ServerFailed when it does not answer at all."""
        with _awake(server):
            server.ping()
        bandwidth = [self._probe()]
        with _awake(server):
            pids = server.pids
            busy, own, begin = busy_s(), own_s(pids), time.perf_counter()
            answers = asyncio.run(run_requests(server.url, prompts, max_tokens, times_s))
            wall_s = time.perf_counter() - begin
            foreign = max(0.0, (busy_s() - busy - own_s(pids) + own) / wall_s)
            memory_mb = server.memory_mb
        bandwidth.append(self._probe())
        row = {"bandwidth_gb_s": bandwidth, "foreign_cpus": round(foreign, 3), "pss_mb": round(memory_mb)}
        row |= metrics(answers, begin)
        reason = self._discard_reason(answers, bandwidth, foreign)
        return Measured(answers, {**row, "kept": reason is None, **({"why": reason} if reason else {})})

    def stop(self, system: str) -> None:
        """End one server."""
        if (server := self._servers.pop(system, None)) is not None:
            server.stop()

    def stop_all(self) -> None:
        """End them all."""
        for system in list(self._servers):
            self.stop(system)

    def _discard_reason(
        self, answers: Sequence[Answer | AnswerError], bandwidth: Sequence[float], foreign: float
    ) -> str | None:
        if any(isinstance(answer, AnswerError) for answer in answers):
            return "failed"
        if max(bandwidth) / min(bandwidth) - 1 > _MAX_BANDWIDTH_CHANGE:
            return "bandwidth"
        return "foreign" if foreign > self._max_foreign else None


def metrics(answers: Sequence[Answer | AnswerError], begin_s: float) -> dict[str, Any]:
    """Rates in tokens/s, times in ms; only the errors where nothing was answered."""
    good = [answer for answer in answers if isinstance(answer, Answer)]
    errors = [str(answer) for answer in answers if isinstance(answer, AnswerError)]
    row: dict[str, Any] = {"requests": len(answers)}
    if errors:
        row |= {"errors": len(errors), "error": errors[0]}
    if not good:
        return row
    wall_s = max(answer.end_s for answer in good) - begin_s
    out = sum(answer.num_output_tokens for answer in good)
    ttft = [answer.ttft_s * 1e3 for answer in good]
    tpot = [answer.tpot_s * 1e3 for answer in good]
    gaps = [gap * 1e3 for answer in good for gap in answer.gaps_s]
    return row | {
        "wall_s": round(wall_s, 3),
        "output_tok_s": round(out / wall_s, 3),
        "total_tok_s": round((out + sum(answer.num_prompt_tokens for answer in good)) / wall_s, 3),
        "cached_tokens": sum(answer.num_cached_tokens for answer in good),
        "ttft_ms": round(statistics.fmean(ttft), 3),
        "tpot_ms": round(statistics.fmean(tpot), 3),
        "itl_p50_ms": round(statistics.median(gaps), 3) if gaps else None,
        "itl_max_ms": round(max(gaps), 3) if gaps else None,
    }


@contextmanager
def _awake(server: Server) -> Iterator[None]:
    server.thaw()
    try:
        yield
    finally:
        server.freeze()
