"""ModelRunner: one Batch in, one BatchResult out.

    KV places -> row orders -> copies -> plan (host) -> ModelInput (device) -> forward -> logits -> mask -> sample
    -> history

Only what every model and every feature shares belongs here. A way to launch forwards is a GraphBook, what happens
between layers is LayerWords, how logits become tokens is the Sampler, what a row remembers is PersistentRows. Before
adding a line, ask which of them it belongs to.

INVARIANTS
- Row orders of a Batch are carried out whether or not the step then succeeds, so rows never lag behind the brain.
- A step that fails or is interrupted leaves the histories as they were; its KV writes are the brain's to retract.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from xllm.engine.attention import StepPlanner
from xllm.engine.kernels import Kernel
from xllm.engine.kernels.penalties.reference import penalise as penalise_with_torch
from xllm.engine.kernels.sampling import pick_largest, sample_gumbel
from xllm.engine.kernels.scoring.reference import score as score_with_torch
from xllm.engine.memory import KVMemory
from xllm.engine.models import CausalLM, StepInterrupted
from xllm.engine.platform import Platform
from xllm.engine.runner.graph_book import EagerBook, GraphBook
from xllm.engine.runner.layer_words import LayerWords
from xllm.engine.runner.logprobs import score_tokens
from xllm.engine.runner.model_input import to_device
from xllm.engine.runner.rows import PersistentRows
from xllm.engine.runner.sampler import Sampler, Samples
from xllm.engine.runner.step_plan import StepPlan, plan_step
from xllm.errors import InternalError
from xllm.types.batch import Batch, BatchResult, RowError, StepFacts, StepMask
from xllm.types.ids import StepId
from xllm.types.output import OutputError, PositionLogprobs

MAX_SCORED_LOGITS = 1 << 24
"""Logits held at once while prompt tokens are scored (64 MiB in float32)."""


class ModelRunner:
    """Runs steps of one model over one KV pool; see the module. Not thread-safe: one thread calls ``run``."""

    def __init__(
        self,
        model: CausalLM,
        kv: KVMemory,
        planner: StepPlanner,
        platform: Platform,
        *,
        max_num_seqs: int,
        max_model_len: int,
        num_threads: int,
        graph_book: GraphBook | None = None,
        sample: Kernel = sample_gumbel,
        pick: Kernel = pick_largest,
        penalise: Kernel = penalise_with_torch,
        score: Kernel = score_with_torch,
    ) -> None:
        self._model = model
        self._kv = kv
        self._platform = platform
        self._num_threads = num_threads
        self.graph_book: GraphBook = graph_book or EagerBook(model, kv, planner, platform.device)
        self._words = LayerWords()
        self._rows = PersistentRows(
            max_rows=max_num_seqs,
            max_model_len=max_model_len,
            block_size=kv.block_size,
            num_groups=len(kv.layout.groups),
        )
        self._score = score
        self._sampler = Sampler(self._rows, sample, pick=pick, penalise=penalise, score=score)

    def prepare_thread(self) -> None:
        """Set what torch keeps per thread; called on the thread that will call ``run``."""
        if self._platform.kind == "cpu":
            torch.set_num_threads(self._num_threads)

    @property
    def layers_done(self) -> int:
        """Layers finished since start, over all steps."""
        return self._words.layers_done

    def interrupt(self, step: StepId) -> None:
        """Give up an interruptible step between layers; callable from any thread."""
        self._words.interrupt(step)

    def tend(self) -> bool:
        """See :class:`StepRunner`."""
        return self._kv.tend()

    @torch.inference_mode()
    def run(self, batch: Batch, take_mask: Callable[[], StepMask]) -> BatchResult:
        """Run one step.

        Raises:
            XllmError, RuntimeError: the step failed as a whole; the rows are as before but for the row orders.
        """
        begin_s = time.perf_counter()
        batch = self._kv.place(batch)
        self._rows.apply(batch)
        for copy in batch.copies:
            if copy.group != 0:
                raise InternalError(f"copy in KV group {copy.group}: the pool has one group")
            self._kv.copy_slots(copy.source, copy.target, copy.num_slots)
        if not batch.rows:
            return BatchResult(step=batch.step, status="ok", epoch=batch.epoch)
        plan = plan_step(self._rows, batch)
        launch = self.graph_book.prepare(plan)
        self._words.begin(batch.step, interruptible=batch.interruptible)
        prepared_s = time.perf_counter()
        try:
            hidden = self.graph_book.forward(launch, self._words)
        except StepInterrupted:
            return BatchResult(step=batch.step, status="interrupted", epoch=batch.epoch)
        wanted = launch.inp.logits_indices
        logits = self._model.compute_logits(hidden[wanted]) if len(plan.sample_tokens) else None
        self._platform.synchronize()
        forward_s = time.perf_counter()
        mask = take_mask() if batch.has_mask else None
        asked_s = time.perf_counter()
        samples = Samples() if logits is None else self._sampler.sample(logits, plan, mask)
        prompt_scores = self._score_prompts(hidden, plan)
        sampled_s = time.perf_counter()
        self._sampler.remember(samples, plan)
        tokens, logprobs = samples.per_row(plan)
        end_s = time.perf_counter()
        return BatchResult(
            step=batch.step,
            status="ok",
            tokens=tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_scores,
            row_errors=_row_errors(samples, plan),
            facts=StepFacts(
                forward_s=forward_s - prepared_s,
                sample_s=sampled_s - asked_s,
                prepare_s=prepared_s - begin_s + end_s - sampled_s,
                total_s=end_s - begin_s,
            ),
            epoch=batch.epoch,
        )

    def _score_prompts(
        self, hidden: torch.Tensor, plan: StepPlan
    ) -> tuple[tuple[PositionLogprobs, ...] | None, ...]:
        """Log-probabilities of the prompt tokens after the scored positions; empty when nobody asked."""
        if not len(plan.scored_tokens):
            return ()
        rows = plan.rows[plan.scored_owner]
        targets = self._rows.token_ids[rows, plan.positions[plan.scored_tokens] + 1]
        num_top = self._rows.sampling.num_prompt_logprobs[rows].tolist()
        size = max(MAX_SCORED_LOGITS // self._model.spec.vocab_size, 1)
        scores: list[list[PositionLogprobs] | None] = [None] * len(plan.rows)
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            logits = self._model.compute_logits(hidden[to_device(plan.scored_tokens[part], hidden.device)])
            wanted = to_device(targets[part].astype("int64"), hidden.device)
            scored = score_tokens(logits, wanted, num_top[part], score=self._score)
            for owner, score in zip(plan.scored_owner[part].tolist(), scored, strict=True):
                found = scores[owner]
                if found is None:
                    scores[owner] = [score]
                else:
                    found.append(score)
        return tuple(None if found is None else tuple(found) for found in scores)


def _row_errors(samples: Samples, plan: StepPlan) -> tuple[RowError, ...]:
    """One error per row, whichever of its samples failed first."""
    errors: dict[int, RowError] = {}
    for sample, message in samples.errors:
        owner = int(plan.sample_owner[sample])
        error = OutputError("InternalServerError", 500, message)
        errors.setdefault(owner, RowError(owner, error))
    return tuple(errors.values())
