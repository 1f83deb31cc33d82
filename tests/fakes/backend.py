"""FakeBackend: an edge's backend without engine; tokens are a fixed text, cut as the test wishes.

Obeys what the edge relies on: every accepted request's choices end in exactly one terminal output, stop ids and
max_tokens and aborts are honoured. Outputs of one step go out together.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence

from tokenizers import processors

from tests.fakes.small_tokenizers import build_byte_level
from xllm.api.backend import BackendHealth, InstanceLoad, OutputSink, Row, Sample, ServedModel
from xllm.api.text_pipeline import TextPipeline
from xllm.errors import CapacityError, XllmError
from xllm.text.chat_template import ChatTemplate
from xllm.text.tokenizer import Tokenizer
from xllm.types.instance import HealthReport, LoadReport
from xllm.types.output import OutputError, PositionLogprobs, RequestOutput, TokenLogprob, Usage
from xllm.types.request import Request

TEMPLATE = (
    "{% for t in tools or [] %}<tool {{ t.function.name }}>{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<call {{ c.function.name }}>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if documents %}{{ documents | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking %}<think>\n{% endif %}{% if reasoning_effort %}{{ reasoning_effort }}{% endif %}"
)
ANSWER = "The capital of France is Paris. Grüße 你好 😀 end of it."


@functools.cache
def fake_text() -> TextPipeline:
    """Byte-level BPE whose post-processor puts <|endoftext|> first, as models with a BOS do."""
    library = build_byte_level()
    bos = "<|endoftext|>"
    library.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, library.token_to_id(bos))]
    )
    tokenizer = Tokenizer(library, {"bos_token": bos, "eos_token": "<|im_end|>"})
    eos = tokenizer.token_to_id("<|im_end|>")
    assert eos is not None
    return TextPipeline(tokenizer=tokenizer, template=ChatTemplate(TEMPLATE), eos_token_ids=(eos,))


class FakeBackend:
    """Streams ``answer`` (then end-of-sequence) for every choice, ``tokens_per_step`` at a time."""

    def __init__(
        self,
        *,
        answer: str = ANSWER,
        tokens_per_step: int = 1,
        delay_s: float = 0.0,
        max_running: int = 10**9,
        max_model_len: int = 256,
        fail_after: int | None = None,
        before_step: Callable[[Request, int], None] | None = None,
    ) -> None:
        self._text = fake_text()
        self._model = ServedModel(
            names=("fake", "alias/of-it"),
            max_model_len=max_model_len,
            vocab_size=self._text.tokenizer.vocab_size,
            block_size=16,
            created=1,
        )
        self.answer_ids = (*self._text.tokenizer.encode(answer, False), self._text.eos_token_ids[0])
        self.tokens_per_step = tokens_per_step
        self.delay_s = delay_s
        self.max_running = max_running
        self.fail_after = fail_after
        self.before_step = before_step
        self.requests: list[Request] = []
        self.aborts: list[tuple[str, int | None, str]] = []
        self.running: dict[str, asyncio.Task[None]] = {}
        self.is_up = True
        self.is_draining = False
        self.is_held = False
        """While it is, no stream goes on."""
        self._aborted: dict[str, dict[int, str]] = {}

    @property
    def model(self) -> ServedModel:
        return self._model

    @property
    def text(self) -> TextPipeline:
        return self._text

    async def submit(self, request: Request, sink: OutputSink) -> None:
        if self.is_draining or not self.is_up:
            raise CapacityError("nothing can serve now", status=503, retry_after_s=5.0)
        if len(self.running) >= self.max_running:
            raise CapacityError("the queue is full", retry_after_s=2.0)
        self.requests.append(request)
        self._aborted[request.id] = {}
        self.running[request.id] = asyncio.create_task(self._run(request, sink))

    async def _run(self, request: Request, sink: OutputSink) -> None:
        params = request.sampling
        open_choices = {c: 0 for c in range(params.n)}
        try:
            while open_choices:
                await asyncio.sleep(self.delay_s)
                while self.is_held:
                    await asyncio.sleep(0.005)
                if self.before_step is not None:
                    self.before_step(request, max(open_choices.values()))
                outputs = []
                for choice, start in list(open_choices.items()):
                    output = self._step(request, choice, start)
                    outputs.append(output)
                    if output.finish_reason is not None:
                        del open_choices[choice]
                    else:
                        open_choices[choice] = start + len(output.token_ids)
                if not sink.deliver(outputs):
                    self.abort(request.id, reason="slow client")
        finally:
            del self.running[request.id]
            del self._aborted[request.id]

    def _step(self, request: Request, choice: int, start: int) -> RequestOutput:
        params = request.sampling
        usage = Usage(request.num_prompt_tokens, start, 2)
        reason = self._aborted[request.id].get(choice)
        if reason is not None:
            finish = "stop" if reason == "stop" else "abort"
            return RequestOutput(request.id, 0, choice, start, (), finish_reason=finish, usage=usage)
        if self.fail_after is not None and start >= self.fail_after:
            error = OutputError("InstanceLost", 503, "the engine died", True)
            return RequestOutput(request.id, 0, choice, start, (), finish_reason="error", error=error)
        assert params.max_tokens is not None
        ids: list[int] = []
        finish = None
        stop_reason = None
        while len(ids) < self.tokens_per_step and finish is None:
            position = start + len(ids)
            token = self.answer_ids[position % len(self.answer_ids)]
            ids.append(token)
            long_enough = position + 1 > params.min_tokens
            if token in request.eos_token_ids and not params.ignore_eos and long_enough:
                finish = "stop"
            elif token in params.stop_token_ids and long_enough:
                finish, stop_reason = "stop", token
            elif position + 1 >= params.max_tokens:
                finish = "length"
        prompt = None
        if params.prompt_logprobs is not None and choice == 0 and start == 0:
            prompt = (None, *(_logprobs(i, params.prompt_logprobs) for i in request.prompt_token_ids[1:]))
        return RequestOutput(
            request.id,
            0,
            choice,
            start,
            tuple(ids),
            logprobs=None if params.logprobs is None else tuple(_logprobs(i, params.logprobs) for i in ids),
            finish_reason=finish,  # type: ignore[arg-type]
            stop_reason=stop_reason,
            usage=Usage(request.num_prompt_tokens, start + len(ids), 2) if finish else None,
            prompt_logprobs=prompt,
            num_cached_tokens=2 if start == 0 else None,
        )

    def abort(self, request_id: str, *, choice: int | None = None, reason: str = "abort") -> None:
        self.aborts.append((request_id, choice, reason))
        marks = self._aborted.get(request_id)
        if marks is not None:
            for index in range(128) if choice is None else (choice,):
                marks.setdefault(index, reason)

    def is_ready(self) -> bool:
        return self.is_up and not self.is_draining

    def health(self) -> BackendHealth:
        state = "ready" if self.is_up else "lost"
        report = HealthReport(state=state, step=1, layers_done=1, num_unfinished=0, idle_s=0.0)
        message = "ok" if self.is_up else "engine e0 is lost"
        return BackendHealth(is_healthy=self.is_up, message=message, instances={"e0": report})

    def loads(self) -> tuple[InstanceLoad, ...]:
        load = LoadReport(num_running=len(self.running), blocks_total=8, blocks_free=6, blocks_used=2, step=5)
        return (InstanceLoad(id="e0", is_healthy=self.is_up, load=load, block_size=16),)

    def samples(self) -> Sequence[Sample]:
        labels = {
            "instance_state": ("e0", "ready"),
            "num_requests_held": ("online",),
            "route_decisions": ("load",),
        }
        labels["attempts_lost"] = ("silent",)
        own = ("attempts_retried", "attempts_migrated", "kv_index_blocks", *labels)
        return [Sample(name, 1, labels.get(name, ())) for name in own]

    async def debug_request(self, request_id: str) -> Sequence[Row]:
        known = any(request.id == request_id for request in self.requests)
        return [{"age_s": 0.0, "event": "queued"}] if known else []

    async def debug_waits(self) -> Sequence[Row]:
        return [{"owner": "fake", "reason": "nothing", "age_s": 0.0, "remaining_s": 1.0}]

    async def drain(self, timeout_s: float) -> None:
        self.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                while self.running:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for request_id in list(self.running):
                self.abort(request_id, reason="shutdown")
            while self.running:
                await asyncio.sleep(0.005)


def _logprobs(token: int, num_top: int) -> PositionLogprobs:
    top = tuple(TokenLogprob(token + k, -0.5 - k, k + 1) for k in range(num_top))
    return PositionLogprobs(TokenLogprob(token, -0.5, 1), top)


class RefusingBackend(FakeBackend):
    """Refuses every request with one error."""

    def __init__(self, error: XllmError) -> None:
        super().__init__()
        self.error = error

    async def submit(self, request: Request, sink: OutputSink) -> None:
        raise self.error
