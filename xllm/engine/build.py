"""Wires a real engine: the composition root of the engine process.

Nothing here imports torch: executors are rows of a table, so a timed engine never loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xllm.base.registry import Registry

if TYPE_CHECKING:
    from xllm.config.resolved import ResolvedEngineConfig
    from xllm.engine.worker.build_local import ExecutorFacts
    from xllm.engine.worker.local import LocalExecutor

EXECUTORS: Registry[Any] = Registry(
    "executor", {"local": "xllm.engine.worker.build_local:build_local_executor"}
)


def build_local_executor(
    resolved: ResolvedEngineConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> tuple[LocalExecutor, ExecutorFacts]:
    """Load the model and wire the executor of this process; see ``xllm.engine.worker.build_local``."""
    built: tuple[LocalExecutor, ExecutorFacts] = EXECUTORS.load("local")(
        resolved, progress=progress, **options
    )
    return built
