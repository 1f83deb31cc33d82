"""What the commands run on one machine."""

from __future__ import annotations

from collections.abc import Sequence

from xllm.config.serve import EngineConfig, ServeConfig


def run_engine(config: EngineConfig) -> int:
    """``xllm engine``: one engine in this process, until a signal comes; returns the exit status."""
    from xllm.engine.server import main as engine_main

    return engine_main.run_engine(config, token=config.server.rpc_token)


def serve(config: ServeConfig) -> int:
    """``xllm serve``: one engine as a child process and the HTTP edge over it; returns the exit status."""
    from xllm.launch import edge

    return edge.serve(config)


def run_service(config: ServeConfig, endpoints: Sequence[str]) -> int:
    """``xllm service``: the HTTP edge over engines that run already; returns the exit status."""
    from xllm.launch import edge

    return edge.run_service(config, endpoints)
