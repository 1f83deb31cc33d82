"""Sends requests when they are due and records when every token came back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from xllm.bench.openai_client import OpenAIClient
from xllm.errors import XllmError


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request: its body and the prompt length known beforehand (0 = unknown, the server will say)."""

    path: str
    body: Mapping[str, Any]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request; seconds of this process's monotonic clock.

    ``itl_s`` are the gaps between chunks that carried output; ``num_output_tokens`` is the server's usage, or
    the number of such chunks where it sends none.
    """

    started_s: float
    latency_s: float = 0.0
    ttft_s: float = 0.0
    itl_s: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        """Whether the whole answer arrived."""
        return self.error is None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for answers of one token."""
        if self.num_output_tokens < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.num_output_tokens - 1)


class _Tally:
    """Collects the events of one stream."""

    def __init__(self, started_s: float) -> None:
        self.started_s = started_s
        self.last_s = started_s
        self.ttft_s = 0.0
        self.num_chunks = 0
        self.itl_s: list[float] = []
        self.texts: list[str] = []
        self.finish_reason: str | None = None
        self.usage: Mapping[str, Any] = {}

    def add(self, event: Mapping[str, Any], now_s: float) -> None:
        usage = event.get("usage")
        if usage:
            self.usage = usage
        for choice in event.get("choices") or ():
            text, is_output = _output_of(choice)
            if is_output:
                self._add_chunk(text, now_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _add_chunk(self, text: str, now_s: float) -> None:
        if self.num_chunks:
            self.itl_s.append(now_s - self.last_s)
        else:
            self.ttft_s = now_s - self.started_s
        self.num_chunks += 1
        self.last_s = now_s
        self.texts.append(text)

    def finish(self, spec: RequestSpec) -> RequestRecord:
        details = self.usage.get("prompt_tokens_details") or {}
        return RequestRecord(
            started_s=self.started_s,
            latency_s=self.last_s - self.started_s,
            ttft_s=self.ttft_s,
            itl_s=tuple(self.itl_s),
            num_prompt_tokens=spec.num_prompt_tokens or int(self.usage.get("prompt_tokens") or 0),
            num_output_tokens=int(self.usage.get("completion_tokens") or self.num_chunks),
            num_cached_tokens=details.get("cached_tokens"),
            text="".join(self.texts),
            finish_reason=self.finish_reason,
        )


def _output_of(choice: Mapping[str, Any]) -> tuple[str, bool]:
    """Text of a streamed choice and whether it stands for output.

    The role of a chat answer, sent before any token exists, is not output; nor is an empty closing chunk. A
    chunk whose text is empty because a character is not complete yet counts (completions send one per token).
    """
    delta = choice.get("delta")
    if delta is None:
        text = str(choice.get("text") or "")
        return text, bool(text) or choice.get("finish_reason") is None
    text = "".join(str(delta.get(key) or "") for key in ("reasoning_content", "content"))
    if not delta.get("reasoning_content"):
        text = str(delta.get("reasoning") or "") + text
    is_output = bool(text) or bool(delta.get("tool_calls")) or bool(choice.get("token_ids"))
    return text, is_output


async def send(client: OpenAIClient, spec: RequestSpec) -> RequestRecord:
    """Run one streamed request to its end; a failure becomes a record with `error`."""
    started_s = time.perf_counter()
    tally = _Tally(started_s)
    try:
        async for event in client.stream(spec.path, spec.body):
            tally.add(event, time.perf_counter())
    except XllmError as exc:
        return RequestRecord(started_s, time.perf_counter() - started_s, error=f"{type(exc).__name__}: {exc}")
    if tally.num_chunks == 0 and tally.finish_reason is None:
        return RequestRecord(
            started_s, error="ProtocolError: the stream carried no output and no finish reason"
        )
    return tally.finish(spec)


async def run_load(
    client: OpenAIClient,
    specs: Sequence[RequestSpec],
    times_s: Sequence[float],
    *,
    max_concurrency: int | None = None,
    on_done: Callable[[RequestRecord], None] = lambda record: None,
) -> tuple[list[RequestRecord], float]:
    """Send ``specs[i]`` at ``times_s[i]`` (or as soon after as ``max_concurrency`` allows).

    Returns the records in the order of ``specs`` and the seconds from the first send to the last end. A
    request's clock starts when it is really sent, so waiting for the concurrency limit is not in its TTFT.
    """
    gate: asyncio.Semaphore | nullcontext[None] = (
        asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()
    )

    async def one(spec: RequestSpec) -> RequestRecord:
        async with gate:
            record = await send(client, spec)
        on_done(record)
        return record

    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for spec, due_s in zip(specs, times_s, strict=True):
            wait_s = start_s + due_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(group.create_task(one(spec)))
    return [task.result() for task in tasks], time.perf_counter() - start_s
