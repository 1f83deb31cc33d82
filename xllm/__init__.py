"""xLLM: a service that speaks the OpenAI API, and engines that run the model.

Importing this package loads neither torch nor any other room: each public name is fetched from its module when it
is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "LLM": "xllm.llm",
    "SamplingParams": "xllm.types.sampling",
    "RequestOutput": "xllm.llm",
    "CompletionOutput": "xllm.llm",
    "Logprob": "xllm.llm",
    "XllmError": "xllm.errors",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "XllmError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'xllm' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
