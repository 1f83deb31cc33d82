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
import copy
import queue
import secrets
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from tqdm import tqdm  # type: ignore[import-untyped]

from xllm.api.chat import template_messages
from xllm.api.generation import ChoiceResult, Generation
from xllm.api.observe import NullObserver
from xllm.api.preprocess import Admission, Preprocessor
from xllm.api.protocol import Message
from xllm.base.event_loop import new_event_loop
from xllm.config.load import load_arguments
from xllm.config.serve import ServeConfig
from xllm.errors import CapacityError, InvalidRequest, XllmError
from xllm.launch.engine_process import EngineProcess
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord
from xllm.service.build import build_service, build_text
from xllm.service.service import Service
from xllm.text.tokenizer import Tokenizer
from xllm.types.output import PositionLogprobs
from xllm.types.sampling import SamplingParams

T = TypeVar("T")
Prompt = str | Mapping[str, Any] | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]

_MAX_SECONDS = 7 * 86_400.0
_WINDOW = 1024
"""Requests in flight at once where the engine's queue has no limit."""
_CLOSE_S = 1.0


@dataclass(slots=True)
class Logprob:
    """One token's log-probability and rank (1 = most likely)."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class CompletionOutput:
    """One choice; in a stream only what is new."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    """Sum over the choice's tokens; None when logprobs were not asked for."""
    logprobs: list[dict[int, Logprob]] | None = None
    """Per token: the best tokens and the chosen one."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One prompt with its choices."""

    request_id: str
    prompt: str | None
    """None when the prompt was given as token ids."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = True


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
        engine = EngineProcess.start(config.engine)
        self._runner = _LoopThread()
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
        listed = _as_prompts(prompts)
        return self._run_all(
            [_Prompt.parse(item) for item in listed], sampling_params, use_tqdm, priority, True
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
            _Prompt(
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
        parsed = _Prompt(text=self._render(cast(Conversation, prompt))) if is_chat else _Prompt.parse(prompt)
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
            return [_checked(given)] * count
        if len(given) != count:
            raise InvalidRequest(
                f"{len(given)} sampling_params for {count} prompts", hint="give one, or one each"
            )
        return [_checked(params) for params in given]

    def _run_all(
        self,
        prompts: Sequence[_Prompt],
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
                return await _all_or_none(jobs)

            return self._runner.run(run())

    async def _one(
        self,
        prompt: _Prompt,
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
        return self._result(prompt, generation, results)

    async def _begin(
        self, prompt: _Prompt, params: SamplingParams, priority: int, adds_special: bool
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
        prompt: _Prompt,
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
            put(_without_frames(exc))

    async def _pieces(
        self, prompt: _Prompt, params: SamplingParams, adds_special: bool
    ) -> AsyncGenerator[CompletionOutput, None]:
        generation = await self._begin(prompt, params, 0, adds_special)
        try:
            while not generation.is_done:
                for delta in await generation.next_deltas():
                    yield CompletionOutput(
                        index=delta.index,
                        text=delta.text,
                        token_ids=list(delta.token_ids),
                        logprobs=self._logprobs(delta.logprobs) if params.logprobs is not None else None,
                        finish_reason=delta.finish_reason,
                        stop_reason=delta.stop_reason,
                    )
        finally:
            generation.close()

    def _result(
        self, prompt: _Prompt, generation: Generation, results: Sequence[ChoiceResult]
    ) -> RequestOutput:
        request = generation.requests[0]
        has_logprobs = request.sampling.logprobs is not None
        found = generation.facts[0].prompt_logprobs
        outputs = [
            CompletionOutput(
                index=result.index,
                text=result.text,
                token_ids=result.token_ids,
                cumulative_logprob=sum(p.token.logprob for p in result.logprobs) if has_logprobs else None,
                logprobs=self._logprobs(result.logprobs) if has_logprobs else None,
                finish_reason=result.finish_reason,
                stop_reason=result.stop_reason,
            )
            for result in results
        ]
        return RequestOutput(
            request_id=request.id,
            prompt=prompt.text,
            prompt_token_ids=list(request.prompt_token_ids),
            outputs=outputs,
            prompt_logprobs=None
            if found is None
            else [None if p is None else self._position(p) for p in found],
            num_cached_tokens=generation.num_cached_tokens,
        )

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> list[dict[int, Logprob]]:
        return [self._position(position) for position in positions]

    def _position(self, position: PositionLogprobs) -> dict[int, Logprob]:
        piece = self._text.tokenizer.token_piece
        return {
            token.token_id: Logprob(token.logprob, token.rank, piece(token.token_id))
            for token in (*position.top, position.token)
        }


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt: a text, or ids."""

    text: str | None = None
    ids: list[int] | None = None

    @classmethod
    def parse(cls, given: Any) -> _Prompt:
        if isinstance(given, str):
            return cls(text=given)
        if isinstance(given, Mapping) and set(given) <= {"prompt", "prompt_token_ids"}:
            if isinstance(ids := given.get("prompt_token_ids"), Sequence) and not isinstance(ids, str):
                text = given.get("prompt")
                return cls(text=text if isinstance(text, str) else None, ids=list(ids))
            if isinstance(text := given.get("prompt"), str):
                return cls(text=text)
        raise InvalidRequest(
            f"a prompt is {str(given)[:80]!r}",
            hint='give a text, {"prompt": text} or {"prompt_token_ids": [...]}',
            param="prompts",
        )


def _as_prompts(prompts: Any) -> list[Any]:
    return [prompts] if isinstance(prompts, str | Mapping) else list(prompts)


def _checked(params: SamplingParams) -> SamplingParams:
    """The same with every type checked: a struct made in Python takes whatever it is given."""
    stop: Any = params.stop
    plain = msgspec.to_builtins(params) | ({"stop": [stop]} if isinstance(stop, str) else {})
    try:
        return msgspec.convert(plain, SamplingParams)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"sampling_params: {exc}", hint="see SamplingParams") from exc


async def _all_or_none(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Every result, or the first error with the other jobs cancelled and ended."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _without_frames(error: Exception) -> Exception:
    """The same error without the frames of the loop's thread: asyncio keeps errors in reference cycles, and frames
    in those would keep a deleted LLM, and so its engine, alive until a garbage collection."""
    if not isinstance(error, XllmError):
        return error  # our bug: its frames are worth more
    fresh = copy.copy(error)
    error.__traceback__ = None
    return fresh


class _LoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="xllm LLM", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Any:
        """Begin ``work`` on the loop; the concurrent future of its result."""
        if not self._thread.is_alive():
            work.close()
            raise InvalidRequest("this LLM is closed", hint="make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop and wait; an interrupted wait cancels it."""
        future = self.start(work)
        try:
            return cast(T, future.result())
        except XllmError as error:
            raise _without_frames(error) from None
        except BaseException:
            future.cancel()
            raise

    def end(self, services: Sequence[Service]) -> None:
        """Close the services and stop; never waits long, never fails."""
        if not self._thread.is_alive():
            return
        for service in services:
            try:
                asyncio.run_coroutine_threadsafe(service.close(), self._loop).result(_CLOSE_S)
            except TimeoutError:
                pass
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this very thread."""
        return threading.current_thread() is self._thread


def _end_all(runner: _LoopThread, engine: EngineProcess, services: list[Service]) -> None:
    if runner.is_current:
        # The last reference went away on the loop's own thread, which cannot wait for itself.
        threading.Thread(target=_end_all, args=(runner, engine, services), name="xllm end").start()
        return
    runner.end(services)
    engine.close()
