"""Wires a service from the configuration."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from xllm.api.backend import ServedModel
from xllm.api.text_pipeline import TextPipeline
from xllm.base.clock import Clock, MonotonicClock
from xllm.base.model_files import find_model_dir
from xllm.base.trace import DecisionTrace
from xllm.base.waits import WaitTable
from xllm.config.serve import ServeConfig
from xllm.registry.registry import InstanceRegistry
from xllm.service.cluster.cluster import Cluster
from xllm.service.cluster.instance import Patience
from xllm.service.dispatch.dispatch import Dispatch
from xllm.service.dispatch.retry import RetryLimits
from xllm.service.hold_queue import HoldLimits
from xllm.service.overload import OverloadGate, OverloadLimits
from xllm.service.policy import POLICIES
from xllm.service.policy.score import Policy
from xllm.service.router import Router
from xllm.service.service import Service
from xllm.types.instance import InstanceInfo
from xllm.types.request import SloBudgets
from xllm.types.tenant import parse_weights

CONNECT_TIMEOUT_S = 30.0


def build_text(config: ServeConfig) -> TextPipeline:
    """Tokenizer, template and defaults of the configured model; downloads no weights."""
    model = config.engine.model
    directory = find_model_dir(model.model, revision=model.revision, with_weights=False)
    tokenizer = None if model.tokenizer is None else find_model_dir(model.tokenizer, with_weights=False)
    return TextPipeline.from_dir(
        directory,
        tokenizer_dir=tokenizer,
        chat_template=model.chat_template,
        generation_config=model.generation_config,
    )


def served_names(config: ServeConfig) -> tuple[str, ...]:
    """Names clients may use: --served-model-name, else the model as given (a directory by its last part, too)."""
    model = config.engine.model
    if model.served_model_name:
        return model.served_model_name
    path = Path(model.model)
    return (
        (model.model, path.resolve().name) if path.is_dir() and path.name != model.model else (model.model,)
    )


def _hold_limits(config: ServeConfig) -> HoldLimits:
    api = config.api
    return HoldLimits(
        max_waiting_per_instance=api.max_waiting_per_instance,
        max_stranded_s=api.failover_timeout_s,
        max_online=api.max_held_online,
        max_offline=api.max_held_offline,
        max_per_tenant=api.max_held_per_tenant,
        order=api.hold_order,
        weights=parse_weights(config.engine.scheduler.tenant_weights),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceOptions:
    """What differs between a service over its own engines and one in a cluster."""

    patience: Patience = field(default_factory=Patience)
    """How long an instance may be silent."""
    serves_any_model: bool = True
    """Serve whatever the first engine runs; else only engines whose model has one of the served names."""
    connect_timeout_s: float | None = CONNECT_TIMEOUT_S
    """How long to wait for a first engine; None: not at all, it may join later."""


async def build_service(
    config: ServeConfig,
    registry: InstanceRegistry,
    *,
    text: TextPipeline | None = None,
    clock: Clock | None = None,
    waits: WaitTable | None = None,
    options: ServiceOptions | None = None,
) -> Service:
    """A started service over the engines of ``registry``. Call inside the event loop; ``close`` it at the end.

    Raises:
        InstanceLost: no engine could be reached in time.
        ModelError: tokenizer or template cannot be read.
    """
    clock = clock or MonotonicClock()
    trace = DecisionTrace(clock, capacity=config.engine.server.num_trace_records)
    names = served_names(config)
    options = options or ServiceOptions()
    revision = config.engine.model.revision or ""

    def may_serve(info: InstanceInfo) -> bool:
        if options.serves_any_model:
            return True
        is_named = info.model in names or Path(info.model).name in names
        return is_named and (not revision or info.revision == revision)

    created = int(time.time())

    def build_model(cluster: Cluster) -> ServedModel:
        infos = [instance.info for instance in cluster.served() if instance.state != "joining"]
        if not infos:
            return ServedModel(
                names=names, max_model_len=0, vocab_size=0, block_size=0, created=created, is_known=False
            )
        return ServedModel(
            names=names,
            max_model_len=min(info.max_model_len for info in infos),
            vocab_size=infos[0].vocab_size,
            block_size=infos[0].block_size,
            revision=infos[0].revision,
            created=created,
        )

    service = Service(
        text=text or build_text(config),
        cluster=Cluster(
            clock,
            stall_timeout_s=config.api.stall_timeout_s,
            patience=options.patience,
            may_serve=may_serve,
        ),
        router=Router(cast(Policy, POLICIES.load(config.api.routing_policy))),
        dispatch=Dispatch(clock, trace, limits=RetryLimits(max_wait_s=config.api.failover_timeout_s)),
        registry=registry,
        gate=OverloadGate(
            OverloadLimits(
                max_open=config.api.max_open_requests,
                max_open_per_tenant=config.api.max_open_requests_per_tenant,
            )
        ),
        clock=clock,
        waits=waits or WaitTable(clock),
        trace=trace,
        build_model=build_model,
        hold=_hold_limits(config),
        default_slo=SloBudgets(
            ttft_ms=config.api.default_ttft_slo_ms, tpot_ms=config.api.default_tpot_slo_ms
        ),
    )
    try:
        await service.start(options.connect_timeout_s)
    except BaseException:
        await service.close()
        raise
    return service
