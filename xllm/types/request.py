"""Request: everything an engine needs to know about one request. Born at the edge, frozen, token ids only.

Times are durations (age, remaining), never absolute: clocks of two machines are not compared.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from xllm.types.ids import BlockHash, InstanceId, RequestId
from xllm.types.sampling import SamplingParams


class MediaItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Reserved for vision: one image, clip or sound, known by its content hash; pixels never travel here."""

    hash: bytes
    kind: Literal["image", "video", "audio"]
    grid: tuple[int, ...] = ()
    """Patches per axis (time, height, width)."""
    num_embeds: int
    interval_s: float = 0.0
    """Seconds between frames of a video."""
    processor_digest: bytes = b""
    num_bytes: int = 0
    handle: str = ""
    """Where the bytes or embeddings can be fetched."""


class MediaSpan(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Reserved for vision: the prompt positions that an item fills; one item may own many spans."""

    item: int
    offset: int
    num_tokens: int
    embed_start: int = 0


class GrammarSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Reserved for structured output: what the tokens must match, and from where."""

    kind: Literal["json", "json_schema", "regex", "choice", "ebnf", "structural_tag"]
    text: str
    after_reasoning: bool = False
    """Start after the end of the thinking block."""


class SessionRef(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The session of a request: routing reads its id; the rest is reserved for agent sessions (where this turn stands
    in their tree). It stays in the service: engines are not sent it, and would refuse it."""

    id: str
    parent: str = ""
    fork_tokens: int = 0
    generation: int = 0
    hints: dict[str, str] = {}


class SloBudgets(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Latency budgets of the request, in milliseconds: first token, per output token, last token."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    ttlt_ms: float | None = None


class MediaRoute(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Reserved for EPD: which instance encodes one media item, and under which lease."""

    item: int
    instance: InstanceId
    lease: str = ""
    epoch: int = 0


class Route(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which instances run the phases of a request. One mixed instance today; leases are reserved for PD and EPD."""

    prefill: InstanceId = ""
    decode: InstanceId = ""
    encode: tuple[MediaRoute, ...] = ()
    prefill_lease: str = ""
    decode_lease: str = ""
    dp_rank: int | None = None


class Program(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is run: ``generate``; a fixed-step beam (generative recommendation) is reserved."""

    kind: Literal["generate", "fixed_beam"] = "generate"
    beam_width: int = 0
    num_steps: int = 0
    item_set: str = ""


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request as the engine sees it."""

    id: RequestId
    attempt: int = 0
    """Counts dispatches of the same request; frames of older attempts are dropped."""
    model: str = ""
    adapter: str | None = None
    """Reserved for LoRA: content hash of the adapter."""
    prompt_token_ids: tuple[int, ...]
    media: tuple[MediaItem, ...] = ()
    media_spans: tuple[MediaSpan, ...] = ()
    resumed_output_ids: tuple[tuple[int, ...], ...] = ()
    """Per choice, tokens already streamed by a dead attempt; generation continues after them."""
    ended_choices: tuple[int, ...] = ()
    """Choices that ended in a dead attempt: they are not run again, and nothing is owed for them."""
    seed: int
    """Always set; the edge draws one when the user gave none."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos_token_ids: tuple[int, ...] = ()
    grammar: GrammarSpec | None = None
    priority: int = 0
    """Lower runs first (vLLM's direction)."""
    offline: bool = False
    """Best effort: yields to every online request."""
    tenant: str = ""
    session: SessionRef | None = None
    cache_salt: str = ""
    """Requests share cached blocks only under the same salt."""
    age_s: float = 0.0
    """How long ago the client's request arrived, when this message was sent."""
    deadline_in_s: float | None = None
    """Remaining time after which the request ends with a deadline error."""
    slo: SloBudgets = field(default_factory=SloBudgets)
    route: Route = field(default_factory=Route)
    program: Program = field(default_factory=Program)
    block_hashes: tuple[BlockHash, ...] = ()
    """Of the prompt's full blocks, in order; computed once at the edge."""
    block_hash_size: int = 0
    """Block size the hashes were computed for; an engine with another block size ignores them and hashes itself."""

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt length in tokens."""
        return len(self.prompt_token_ids)

    @property
    def open_choices(self) -> tuple[int, ...]:
        """Choices to run, in order; a choice keeps its number (and so its noise) in every attempt."""
        return tuple(choice for choice in range(self.sampling.n) if choice not in self.ended_choices)
