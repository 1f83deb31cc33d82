"""How fast a machine multiplies by the number of rows, measured once and kept; what prefill chunks are chosen from.

A chunk is the longest time for which a prompt holds back those who are being answered. It has to have enough rows for
the products to run near their peak, and enough work that a step's fixed costs do not show; more rows buy nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FORMAT = 1
CHUNK_S = 0.25
"""Seconds of products in a chunk, where the rows allow it."""
MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS = 64, 2048
NEAR_PEAK = 0.95
"""Share of the best rate that counts as reached."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmCurve:
    """Rates of the packed products of one machine with all its threads.

    Raises:
        ValueError: no rows, rows that do not grow, or rates that are none.
    """

    cpu_name: str
    num_threads: int
    dtype: str
    rows: tuple[int, ...]
    """Rows of the left operand, growing."""
    flops_per_s: tuple[float, ...]
    """One for each of ``rows``."""

    def __post_init__(self) -> None:
        grows = all(a < b for a, b in zip(self.rows, self.rows[1:], strict=False))
        if not self.rows or self.rows[0] < 1 or not grows or len(self.rows) != len(self.flops_per_s):
            raise ValueError(f"rows {self.rows} for {len(self.flops_per_s)} rates")
        if not all(0 < rate < 1e18 for rate in self.flops_per_s):
            raise ValueError(f"rates {self.flops_per_s}")

    @property
    def peak(self) -> float:
        """The best rate, FLOP/s."""
        return max(self.flops_per_s)

    @property
    def efficient_rows(self) -> int:
        """The fewest measured rows that come near the peak."""
        pairs = zip(self.rows, self.flops_per_s, strict=True)
        return next(rows for rows, rate in pairs if rate >= NEAR_PEAK * self.peak)

    def chunk_tokens(self, flops_per_token: float) -> int:
        """Tokens of a prefill chunk: a quarter of a second of work, not fewer rows than the products need."""
        in_time = self.peak * CHUNK_S / max(flops_per_token, 1.0)
        wanted = max(in_time, self.efficient_rows, MIN_CHUNK_TOKENS)
        return min(MAX_CHUNK_TOKENS, int(wanted) // 64 * 64)


def curve_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this user's curve is kept: ``gemm_curve.json`` below ``$XDG_CACHE_HOME/xllm`` or ``~/.cache/xllm``."""
    root = environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "xllm" / "gemm_curve.json"


def save_curve(curve: GemmCurve, path: Path) -> None:
    """Write the curve, replacing the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps({"format": FORMAT, **asdict(curve)}, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def try_load_curve(path: Path, *, cpu_name: str, num_threads: int) -> GemmCurve | None:
    """The kept curve; None where there is none, it is damaged, another CPU's, or of another number of threads.

    A container may see its host's file and have fewer of its cores.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("format") != FORMAT:
            return None
        rows, rates = tuple(map(int, stored.pop("rows"))), tuple(map(float, stored.pop("flops_per_s")))
        curve = GemmCurve(rows=rows, flops_per_s=rates, **stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    return curve if (curve.cpu_name, curve.num_threads) == (cpu_name, num_threads) else None
