"""The offline API.

llm.py          LLM: generate, chat, stream over a service and an engine process of its own
inputs.py       prompts and parameters as callers give them
results.py      RequestOutput, CompletionOutput, Logprob in vLLM's shape
loop_thread.py  an event loop on a thread of its own
"""

from __future__ import annotations

from xllm.llm.llm import LLM
from xllm.llm.results import CompletionOutput, Logprob, RequestOutput

__all__ = ["LLM", "CompletionOutput", "Logprob", "RequestOutput"]
