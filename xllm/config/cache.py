"""KV cache: block size, memory, prefix cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """How much KV there is and how it is cut into blocks."""

    block_size: int = opt(16, "--block-size", "--page-size")
    """Tokens per block: the unit of allocation, of prefix hashes and of transfers."""
    kv_cache_memory_bytes: int | None = opt(None, "--kv-cache-memory-bytes", "--kv-cache-memory")
    """Memory for KV, e.g. ``2GiB``; auto: on a CPU half of what is free after weights, at most what the
    running sequences could use; on a GPU what ``gpu_memory_utilization`` leaves."""
    gpu_memory_utilization: float = opt(0.9, "--gpu-memory-utilization", "--mem-fraction-static")
    """Share of the GPU's memory for weights, activations and KV together; has no effect on a CPU."""
    num_gpu_blocks_override: int | None = opt(None, "--num-gpu-blocks-override")
    """Number of KV blocks on whatever device is used, instead of one derived from memory; for tests."""
    enable_prefix_caching: bool = opt(
        True, "--enable-prefix-caching", negative_aliases=("--disable-radix-cache",)
    )
    """Reuse the KV of earlier requests that begin with the same tokens."""
    kv_layout: Literal["paged", "xtensor"] = opt("paged", "--kv-layout")
    """How KV lies in memory. ``paged``: blocks of one pool, reached through block tables. ``xtensor``: one stretch of
    addresses per sequence, backed page by page; a page is a block then, so ``block_size`` has no effect."""
    kv_page_bytes: int | None = opt(None, "--kv-page-bytes")
    """Size of a page of layout ``xtensor``, e.g. ``2MiB``: whole tokens and whole system pages; auto: the smallest from
    64 KiB on with which all pages can be mapped at once. Unused by ``paged``."""

    kv_touch_ahead_tokens: int = 8192
    """On a CPU an idle engine has the system bring in memory for the KV of so many tokens more than are in use, so that
    no request waits for it; 0: none. The rest of ``kv_cache_memory_bytes`` costs nothing until it is used."""

    def __post_init__(self) -> None:
        size = self.block_size
        override = self.num_gpu_blocks_override
        require(
            (
                (
                    1 <= size <= 256 and size & (size - 1) == 0,
                    f"block_size is {size}: a power of two, 1 to 256",
                ),
                (
                    self.kv_cache_memory_bytes is None or self.kv_cache_memory_bytes > 0,
                    f"kv_cache_memory_bytes is {self.kv_cache_memory_bytes}: more than 0, or auto",
                ),
                (
                    0 < self.gpu_memory_utilization <= 1,
                    f"gpu_memory_utilization is {self.gpu_memory_utilization}: a share in (0, 1]",
                ),
                (
                    self.kv_page_bytes is None or self.kv_page_bytes > 0,
                    f"kv_page_bytes is {self.kv_page_bytes}: more than 0, or auto",
                ),
                (
                    self.kv_touch_ahead_tokens >= 0,
                    f"kv_touch_ahead_tokens is {self.kv_touch_ahead_tokens}: at least 0",
                ),
                (override is None or override >= 1, f"num_gpu_blocks_override is {override}: at least 1"),
            ),
            "cache",
        )
