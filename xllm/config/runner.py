"""The device and how a step runs on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerConfig:
    """Where and how the model is run."""

    device: Device = opt("auto", "--device")
    """``cpu``, ``cuda`` or ``auto``: a GPU where there is one."""
    num_threads: int | None = opt(None, "--num-threads")
    """Threads of one step on a CPU; auto: the cores this process may use."""
    enforce_eager: bool = opt(False, "--enforce-eager", "--disable-cuda-graph")
    """Never capture graphs. Graphs are not built yet, so every step is eager either way."""
    batch_invariant: bool = False
    """Make logits independent of batch, chunking and phase. Only false is built; float32 comes close
    without it."""

    def __post_init__(self) -> None:
        threads = self.num_threads
        require(
            (
                (threads is None or threads >= 1, f"num_threads is {threads}: at least 1"),
                (not self.batch_invariant, "batch_invariant is true: not built yet, use false"),
            ),
            "runner",
        )
