"""The device and how a step runs on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require

Device = Literal["auto", "cpu", "cuda"]
Graphs = Literal["auto", "off", "layers", "decode", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerConfig:
    """Where and how the model is run."""

    device: Device = opt("auto", "--device")
    """``cpu``, ``cuda`` or ``auto``: a GPU where there is one."""
    num_threads: int | None = opt(None, "--num-threads")
    """Threads of one step on a CPU; auto: the cores this process may use."""
    cpu_set: str = opt("auto", "--cpu-set")
    """CPUs of an engine. ``auto``: those it may use; where there are cores enough, each thread of a step is pinned to a
    core of its own and everything else kept off these. ``off``: nothing is pinned. A list (``0-15,32``) or a NUMA node
    (``node:1``): these only, and memory near them."""
    enforce_eager: bool = opt(False, "--enforce-eager", "--disable-cuda-graph")
    """Run every step operation by operation, never as a graph: the off switch of ``graphs``."""
    graphs: Graphs = "auto"
    """How a step is launched. ``off``: operation by operation. ``layers``: each layer as one call of the CPU
    kernels; the default on a CPU. ``decode`` and ``all``: as graphs over persistent, padded
    inputs, steps in which every row has one token or steps with prompts too; on a CPU such a graph is the padded
    forward itself, which saves nothing, and on a GPU graphs are not built yet."""
    max_graph_tokens: int = 512
    """Steps with more tokens are not run as graphs."""
    kernels: str = "auto"
    """Which implementation computes what: ``auto`` takes the best that runs here; ``reference`` torch's own operations
    everywhere; ``op=name,...`` chooses by operation (``linear=reference,paged_attention=native``)."""
    shared_prefix_attention: bool = True
    """Read the keys and values of a prefix that several rows of a step share once for all of them (CPU kernels). No bit
    of a result depends on it."""
    kv_pairs: bool = True
    """Keep keys and values in blocks in the order of bf16 dot products, where the CPU kernels have those: decodes read
    them faster. No bit of a result depends on it."""
    batch_invariant: bool = opt(False, "--batch-invariant")
    """Refuse to start unless no bit of a logit depends on the batch, on how a prompt is cut, or on whether a token was
    computed in a chunk or a decode. The CPU kernels are always so, at no cost; torch's operations are not."""

    def __post_init__(self) -> None:
        threads = self.num_threads
        require(
            (
                (self.cpu_set != "", "cpu_set is empty: use auto, off, a list of CPUs or node:N"),
                (threads is None or threads >= 1, f"num_threads is {threads}: at least 1"),
                (self.max_graph_tokens >= 1, f"max_graph_tokens is {self.max_graph_tokens}: at least 1"),
                (
                    not self.enforce_eager or self.graphs in ("auto", "off"),
                    f"graphs is {self.graphs} and enforce_eager is true: say one of them",
                ),
            ),
            "runner",
        )
