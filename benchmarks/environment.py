"""What a benchmark ran on; the scripts here and ``xllm bench`` say it alike."""

from __future__ import annotations

from xllm.bench.environment import describe as describe
