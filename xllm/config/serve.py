"""The sections composed: what an engine needs, and what ``xllm serve`` needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xllm.config.api import ApiConfig
from xllm.config.cache import CacheConfig
from xllm.config.cluster import ClusterConfig, InstanceConfig, RegistryConfig
from xllm.config.log import LogConfig
from xllm.config.model import ModelConfig
from xllm.config.runner import RunnerConfig
from xllm.config.scheduler import SchedulerConfig
from xllm.config.server import ServerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What the user said about one engine; None or "auto" where nothing was said."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """The KV cache."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """The scheduler."""
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    """The device."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """The engine process."""
    log: LogConfig = field(default_factory=LogConfig)
    """Logging."""


def needs_weights(config: EngineConfig) -> bool:
    """Whether the engine will read the model's weights."""
    return config.server.executor == "local" and config.model.load_format != "dummy"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """What the user said about a whole server: one engine's configuration and the HTTP edge."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """The engine."""
    api: ApiConfig = field(default_factory=ApiConfig)
    """The HTTP edge."""


SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "runner": RunnerConfig,
    "server": ServerConfig,
    "log": LogConfig,
    "api": ApiConfig,
    "registry": RegistryConfig,
    "instance": InstanceConfig,
    "cluster": ClusterConfig,
}
ENGINE_SECTIONS = ("model", "cache", "scheduler", "runner", "server", "log")
SERVE_SECTIONS = (*ENGINE_SECTIONS, "api")
REGISTRY_SECTIONS = ("registry", "log")
"""What the commands that only look at a registry take."""
