"""Bench: drives an OpenAI endpoint or an offline engine and reports what was measured. No torch.

openai_client  OpenAIClient: JSON and SSE over aiohttp, typed errors; the one client of bench and chat
load           RequestSpec -> RequestRecord; open-loop arrivals under a concurrency limit
metrics        ServingMetrics: percentiles, peaks, goodput from records
report         the console block with vLLM's labels, the result JSON and its file name
serve          `bench serve`: options -> dataset -> load -> report
offline        `bench throughput` and `bench latency` over anything that generates (an `xllm.LLM`)
startup        `bench startup`: process start -> port open -> ready -> first token, and what it consists of
environment    what a result was measured on: machine, versions, command
processes      memory and processor time of a tree of processes
"""

from __future__ import annotations
