"""What the commands run on one machine."""

from __future__ import annotations

from xllm.config.serve import EngineConfig
from xllm.engine.server import main as engine_main


def run_engine(config: EngineConfig) -> int:
    """``xllm engine``: one engine in this process, until a signal comes; returns the exit status."""
    return engine_main.run_engine(config, token=config.server.rpc_token)
