"""simulate(): a workload through one engine."""

from __future__ import annotations

from collections.abc import Sequence

from xllm.engine.core.engine_core import EngineCore
from xllm.engine.timed import TimedRunner
from xllm.errors import InternalError
from xllm.perf.step_time import StepTimeProfile
from xllm.sim.engine import SimEngine
from xllm.sim.events import EventQueue
from xllm.sim.report import Report, RequestRecord
from xllm.sim.trace import TraceRequest
from xllm.types.batch import Batch
from xllm.types.output import RequestOutput
from xllm.types.request import Request


def simulate(
    trace: Sequence[TraceRequest],
    core: EngineCore,
    profile: StepTimeProfile,
    events: EventQueue,
    *,
    host_s: float = 0.0,
    check: bool = False,
) -> Report:
    """Run a trace to its end; ``core`` must have been built over ``events.clock``.

    Raises:
        InternalError: the engine stopped with requests unfinished.
    """
    lengths = {t.request.id: t.output_tokens for t in trace}
    runner = TimedRunner(
        profile,
        vocab_size=core.vocab_size,
        num_layers=1,
        output_length=lambda request, _choice: lengths[request.id],
    )
    report = Report()
    clock, pool = events.clock, core.cache.pools[core.cache.main_group]

    def on_outputs(outputs: list[RequestOutput]) -> None:
        for output in outputs:
            report.records[output.request_id].add(output, clock.now())

    def on_step(_engine: SimEngine, _batch: Batch, duration_s: float) -> None:
        report.num_steps += 1
        report.busy_s += duration_s
        report.utilisation_sum += pool.num_used / pool.total

    engine = SimEngine(
        core, runner, events, on_outputs=on_outputs, on_step=on_step, host_s=host_s, check=check
    )

    def arrive(request: Request) -> None:
        record = RequestRecord(clock.now(), len(request.prompt_token_ids))
        report.records[request.id] = record
        refusal = engine.submit(request)
        if refusal is not None:
            record.refusal = type(refusal).__name__

    for item in trace:
        events.at(item.arrival_s, lambda r=item.request: arrive(r))  # type: ignore[misc]
    events.run()
    if core.num_unfinished:
        raise InternalError(f"the simulated engine stopped with {core.num_unfinished} sequences unfinished")
    report.duration_s = clock.now()
    report.num_preemptions = core.scheduler.num_preemptions
    return report
