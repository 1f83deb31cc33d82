"""Resolves an engine's configuration on this machine, from the model's own files: no torch, no weights
read."""

from __future__ import annotations

from collections.abc import Mapping

from xllm.base.machine import gather_machine_facts, query_gpu_facts
from xllm.base.model_files import find_model_dir
from xllm.config.load import Source
from xllm.config.model_spec import read_model_spec
from xllm.config.resolve import resolve
from xllm.config.resolved import ResolvedEngineConfig
from xllm.config.serve import EngineConfig


def resolve_here(
    config: EngineConfig, *, sources: Mapping[str, Source] | None = None, with_weights: bool = False
) -> ResolvedEngineConfig:
    """Decide every open value; ``with_weights`` downloads a hub model's weights too where they are missing.

    Raises:
        ModelError: the model cannot be found or read.
        ConfigError: the configuration cannot work here.
    """
    directory = find_model_dir(config.model.model, revision=config.model.revision, with_weights=with_weights)
    gpu = None if config.server.executor.startswith("timed:") else query_gpu_facts()
    return resolve(config, read_model_spec(directory), gather_machine_facts(gpu), sources=sources)
