"""LLM: the model without HTTP - the same service and the same engine process, driven from ordinary Python code.

    from xllm import LLM, SamplingParams
    with LLM("demo") as llm:
        for out in llm.generate(["The capital of France is"], SamplingParams(max_tokens=8)):
            print(out.outputs[0].text)

Results have vLLM's shape. Engine options are keyword arguments called like the flags of ``xllm serve``.

INVARIANTS
- One background thread runs the event loop; the service lives on it, callers never touch it from elsewhere.
- After ``close`` (or deletion, or interpreter exit) neither the thread nor the engine process is left.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import msgspec
from tqdm import tqdm  # type: ignore[import-untyped]

from xllm.api.chat import template_messages
from xllm.api.generation import Generation
from xllm.api.observe import NullObserver
from xllm.api.preprocess import Admission, Preprocessor
from xllm.api.protocol import Message
from xllm.config.load import load_arguments
from xllm.config.serve import ServeConfig
from xllm.errors import CapacityError, InvalidRequest
from xllm.launch.engine_process import EngineProcess
from xllm.llm.inputs import GivenPrompt, checked, listed
from xllm.llm.loop_thread import LoopThread, all_or_none, without_frames
from xllm.llm.results import CompletionOutput, RequestOutput, ResultMaker
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord
from xllm.service.build import build_service, build_text
from xllm.service.service import Service
from xllm.text.tokenizer import Tokenizer
from xllm.types.sampling import SamplingParams

Prompt = str | Mapping[str, Any] | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]

_MAX_SECONDS = 7 * 86_400.0
_WINDOW = 1024
"""Requests in flight at once where the engine's queue has no limit."""


class LLM:
    """A served model in this program; see the module."""

    def __init__(self, model: str | Path = "demo", **options: Any) -> None:
        """Start an engine and wait until it is ready.

        Raises:
            ConfigError: an unknown option (the nearest is named) or one that cannot work here.
            ModelError: the model cannot be found or read.
        """
        config = ServeConfig(engine=load_arguments({"model": str(model), **options}).engine())
        self._text = build_text(config)
        self._results = ResultMaker(self._text.tokenizer)
        engine = EngineProcess.start(config.engine)
        self._runner = LoopThread()
        self._service: Service | None = None
        self._end = weakref.finalize(self, _end_all, self._runner, engine, [])
        registry = MemoryRegistry()

        async def start() -> Service:
            registry.publish(InstanceRecord(info=engine.info, token=engine.token))
            return await build_service(config, registry, text=self._text)

        try:
            self._service = self._runner.run(start())
        except BaseException:
            self.close()
            raise
        self._end.detach()
        self._end = weakref.finalize(self, _end_all, self._runner, engine, [self._service])
        self._preprocessor = Preprocessor(
            model=self._service.model, text=self._text, max_seconds=_MAX_SECONDS
        )
        self._window = config.engine.scheduler.max_num_queued_reqs or _WINDOW
        self._prefix = f"llm-{secrets.token_hex(4)}"
        self._next_number = 0
        self.engine_pid = engine.pid

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._text.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a request without parameters gets: the model's generation_config.json over neutral values."""
        return self._preprocessor.default_sampling({})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; results in the order of the prompts.

        A prompt is a text, ``{"prompt": text}`` or ``{"prompt_token_ids": [...]}``.

        Raises:
            RequestError: a prompt or parameter is wrong; nothing is left running.
        """
        given = listed(prompts)
        return self._run_all(
            [GivenPrompt.parse(item) for item in given], sampling_params, use_tqdm, priority, True
        )

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several; the chat template writes the prompts.

        Raises:
            RequestError: a conversation or parameter is wrong.
        """
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            GivenPrompt(
                text=self._render(
                    cast(Conversation, conversation),
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    template_kwargs=chat_template_kwargs,
                )
            )
            for conversation in conversations
        ]
        return self._run_all(prompts, sampling_params, use_tqdm, None, False)

    def stream(
        self, prompt: Prompt | Conversation, sampling_params: SamplingParams | None = None
    ) -> Iterator[CompletionOutput]:
        """Yield what each step adds: new text and tokens of a choice, the finish reason with its last piece.

        ``prompt`` is a prompt as for :meth:`generate`, or one conversation as for :meth:`chat`. Leaving the loop
        early ends the request.
        """
        is_chat = not isinstance(prompt, str | Mapping) and bool(prompt) and isinstance(prompt[0], Mapping)
        parsed = (
            GivenPrompt(text=self._render(cast(Conversation, prompt)))
            if is_chat
            else GivenPrompt.parse(prompt)
        )
        params = self._params(sampling_params, 1)[0]
        # At most max_tokens pieces: a slow reader holds up nobody, the engine least.
        pieces: queue.Queue[CompletionOutput | BaseException | None] = queue.Queue()
        reading = self._runner.start(self._pump(parsed, params, pieces.put, adds_special=not is_chat))
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            reading.cancel()
            del reading, piece  # an exception's frames must not keep this object alive

    def close(self) -> None:
        """End the engine and the background thread; safe to call again."""
        self._end()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- private --

    def _render(self, conversation: Conversation, **options: Any) -> str:
        try:
            messages = msgspec.convert(list(conversation), list[Message])
        except msgspec.ValidationError as exc:
            raise InvalidRequest(f"messages: {exc}", param="messages") from exc
        return self._text.render_chat(template_messages(messages, self._text), **options)

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if given is None:
            return [self.get_default_sampling_params()] * count
        if isinstance(given, SamplingParams):
            return [checked(given)] * count
        if len(given) != count:
            raise InvalidRequest(
                f"{len(given)} sampling_params for {count} prompts", hint="give one, or one each"
            )
        return [checked(params) for params in given]

    def _run_all(
        self,
        prompts: Sequence[GivenPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        priority: Sequence[int] | None,
        adds_special: bool,
    ) -> list[RequestOutput]:
        params = self._params(sampling_params, len(prompts))
        priorities = [0] * len(prompts) if priority is None else list(priority)
        if len(priorities) != len(prompts):
            raise InvalidRequest(f"{len(priorities)} priorities for {len(prompts)} prompts", param="priority")
        with tqdm(total=len(prompts), desc="prompts", disable=not use_tqdm) as bar:

            async def run() -> list[RequestOutput]:
                window = asyncio.Semaphore(self._window)
                jobs = [
                    self._one(prompt, wanted, level, adds_special, window, bar.update)
                    for prompt, wanted, level in zip(prompts, params, priorities, strict=True)
                ]
                return await all_or_none(jobs)

            return self._runner.run(run())

    async def _one(
        self,
        prompt: GivenPrompt,
        params: SamplingParams,
        priority: int,
        adds_special: bool,
        window: asyncio.Semaphore,
        done: Callable[[], object],
    ) -> RequestOutput:
        async with window:
            generation = await self._begin(prompt, params, priority, adds_special)
            try:
                results = await generation.collect()
            finally:
                generation.close()
        done()
        return self._results.whole(prompt.text, generation, results)

    async def _begin(
        self, prompt: GivenPrompt, params: SamplingParams, priority: int, adds_special: bool
    ) -> Generation:
        assert self._service is not None
        ids = prompt.ids
        if ids is None:
            ids = self._preprocessor.encode_text(prompt.text or "", add_special_tokens=adds_special)
        number, self._next_number = self._next_number, self._next_number + 1
        request = self._preprocessor.build_request(
            f"{self._prefix}-{number}", ids, params, Admission(priority=priority)
        )
        while True:
            generation = Generation(self._service, (request,), NullObserver())
            try:
                await generation.start()
                return generation
            except CapacityError as error:
                if error.status != 429:
                    raise
                await asyncio.sleep(min(error.retry_after_s, 1.0))

    async def _pump(
        self,
        prompt: GivenPrompt,
        params: SamplingParams,
        put: Callable[[CompletionOutput | BaseException | None], object],
        *,
        adds_special: bool,
    ) -> None:
        try:
            async with aclosing(self._pieces(prompt, params, adds_special)) as pieces:
                async for piece in pieces:
                    put(piece)
            put(None)
        except asyncio.CancelledError:
            raise  # the reader has left
        except Exception as exc:
            put(without_frames(exc))

    async def _pieces(
        self, prompt: GivenPrompt, params: SamplingParams, adds_special: bool
    ) -> AsyncGenerator[CompletionOutput, None]:
        generation = await self._begin(prompt, params, 0, adds_special)
        try:
            while not generation.is_done:
                for delta in await generation.next_deltas():
                    yield self._results.piece(delta, has_logprobs=params.logprobs is not None)
        finally:
            generation.close()


def _end_all(runner: LoopThread, engine: EngineProcess, services: list[Service]) -> None:
    if runner.is_current:
        # The last reference went away on the loop's own thread, which cannot wait for itself.
        threading.Thread(target=_end_all, args=(runner, engine, services), name="xllm end").start()
        return
    runner.end(services)
    engine.close()
