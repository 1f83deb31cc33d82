"""What every field of the HTTP API means here: honoured, a no-op by meaning, or refused by name.

One table per endpoint; :mod:`xllm.api.protocol` has the types, this file the verdicts, and
``python -m xllm.api.fields > docs/reference/fields.md`` the page. Tests compare table, structs, page and behaviour.
Nothing accepted is ignored: a refused field is a 400 that names it, unless it has one of its ``neutral`` values, which
ask for what happens anyway.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xllm.api.protocol import ChatRequest, CompletionRequest
from xllm.errors import InvalidRequest, Unsupported

Verdict = Literal["honoured", "inert", "refused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field of one endpoint's body."""

    name: str
    verdict: Verdict
    source: Literal["OpenAI", "vLLM", "SGLang", "xLLM"]
    """Whose field it is."""
    note: str
    """What it does, why it does nothing, or what to do instead."""
    example: Any = None
    """A value that shows the verdict: tests send it."""
    neutral: tuple[Any, ...] = ()
    """Refused fields: values that ask for nothing special and are accepted."""


def _honoured(name: str, source: Any, example: Any, note: str) -> Field:
    return Field(name=name, verdict="honoured", source=source, note=note, example=example)


def _inert(name: str, source: Any, example: Any, note: str) -> Field:
    return Field(name=name, verdict="inert", source=source, note=note, example=example)


def _refused(name: str, source: Any, example: Any, note: str, *neutral: Any) -> Field:
    return Field(name=name, verdict="refused", source=source, note=note, example=example, neutral=neutral)


_NO_GRAMMAR = "structured output is not built yet"

_SHARED = (
    _honoured("model", "OpenAI", None, "a served name; absent: the first one; another name is a 404"),
    _honoured("n", "OpenAI", 2, "choices per prompt, 1 to 128; each has its own noise stream"),
    _honoured("temperature", "OpenAI", 0.25, "0 is greedy"),
    _honoured("top_p", "OpenAI", 0.5, "nucleus"),
    _honoured("top_k", "vLLM", 5, "0 or -1: all tokens"),
    _honoured("min_p", "vLLM", 0.2, "relative to the most likely token"),
    _honoured("presence_penalty", "OpenAI", 0.5, "-2 to 2"),
    _honoured("frequency_penalty", "OpenAI", 0.5, "-2 to 2"),
    _honoured("repetition_penalty", "vLLM", 1.3, "over prompt and output; 1 is off"),
    _honoured("logit_bias", "OpenAI", {"5": 10}, "token id to bias, -100 to 100"),
    _honoured("seed", "OpenAI", 7, "fixes every sample, whatever the batch; absent: one is drawn"),
    _honoured("max_tokens", "OpenAI", 3, "absent: generation_config.json, else what the context leaves"),
    _honoured("min_tokens", "vLLM", 2, "no end before this many tokens"),
    _honoured("stop", "OpenAI", ["zq"], "up to 64 strings; the text is cut exactly before the first to appear"),
    _honoured("stop_token_ids", "vLLM", [5], "ids that end a choice"),
    _honoured("include_stop_str_in_output", "vLLM", True, "keep the stop string or stop token in the text"),
    _honoured("ignore_eos", "vLLM", True, "do not end at end-of-sequence"),
    _honoured("bad_words", "vLLM", ["of"], "texts that may not be generated"),
    _honoured("allowed_token_ids", "vLLM", [5, 6], "only these ids may be generated"),
    _honoured("prompt_logprobs", "vLLM", 1, "log-probabilities of the prompt; not with stream"),
    _honoured("skip_special_tokens", "vLLM", False, "leave special tokens out of the text; default true"),
    _honoured("truncate_prompt_tokens", "vLLM", 2, "keep that many prompt tokens; -1: what fits the context"),
    _honoured("truncation_side", "vLLM", "right", "the side that truncate_prompt_tokens cuts; default left"),
    _honoured("stream", "OpenAI", True, "server-sent events"),
    _honoured("stream_options", "OpenAI", {"include_usage": True}, "include_usage, continuous_usage_stats"),
    _honoured("priority", "vLLM", -1, "lower runs first (vLLM's direction) under --scheduling-policy priority"),
    _honoured("request_id", "vLLM", "mine-1", "becomes part of the response id"),
    _honoured("cache_salt", "vLLM", "salt", "only requests with the same salt share cached blocks"),
    _honoured("return_token_ids", "vLLM", True, "adds prompt_token_ids and token_ids"),
    _honoured("return_tokens_as_token_ids", "vLLM", True, "tokens of logprobs are shown as token_id:N"),
    _honoured("timeout_s", "xLLM", 30.0, "the request ends with a 504 after that many seconds"),
    _honoured("ttft_slo_ms", "xLLM", 500.0, "budget to the first token: deadline of the order, 429 when out of reach"),
    _honoured("tpot_slo_ms", "xLLM", 50.0, "budget per output token: prompts beside it are cut to meet it"),
    _honoured("ttlt_slo_ms", "xLLM", 5000.0, "budget to the last token; counts as a bound of the first one"),
    _honoured("offline", "xLLM", True, "best effort: behind all online requests"),
    _honoured("user", "OpenAI", "me", "the tenant under --fairness, where not several API keys tell tenants apart"),
    _honoured("session_id", "vLLM", "s1", "under --routing-policy session_affinity its requests go to one instance"),
    _refused(
        "spaces_between_special_tokens", "vLLM", False, "true is what the decoder does", True
    ),
    _refused("response_format", "OpenAI", {"type": "json_object"}, _NO_GRAMMAR, {"type": "text"}),
    _refused("structured_outputs", "vLLM", {"json": {}}, _NO_GRAMMAR),
    _refused("guided_json", "vLLM", {}, _NO_GRAMMAR),
    _refused("guided_regex", "vLLM", "a+", _NO_GRAMMAR),
    _refused("guided_choice", "vLLM", ["a"], _NO_GRAMMAR),
    _refused("guided_grammar", "vLLM", "root ::= 'a'", _NO_GRAMMAR),
    _refused("structural_tag", "vLLM", "{}", _NO_GRAMMAR),
    _refused("use_beam_search", "vLLM", True, "beam search is not built", False),
    _refused("length_penalty", "vLLM", 0.5, "belongs to beam search, which is not built", 1, 1.0),
    _refused("logprob_token_ids", "vLLM", [1], "ask for logprobs and read the ids from them", []),
    _refused("return_prompt_text", "vLLM", True, "not built; /tokenize shows the prompt's tokens", False),
    _refused("kv_transfer_params", "vLLM", {"a": 1}, "KV transfer between instances is not built", {}),
    _refused("ec_transfer_params", "vLLM", {"a": 1}, "encoder transfer is not built", {}),
    _refused("vllm_xargs", "vLLM", {"a": 1}, "custom arguments have no receiver here", {}),
    _refused("repetition_detection", "vLLM", {"a": 1}, "not built; use repetition_penalty"),
    _refused("stream_interval", "vLLM", 5, "every step is sent at once", 1),
    _refused("thinking_token_budget", "vLLM", 10, "reasoning budgets are not built"),
)  # fmt: skip

CHAT_FIELDS: tuple[Field, ...] = (
    _honoured("messages", "OpenAI", None, "rendered by the model's chat template; text parts only"),
    _honoured("max_completion_tokens", "OpenAI", 3, "same as max_tokens; wins when both are given"),
    _honoured("logprobs", "OpenAI", True, "log-probability of each token"),
    _honoured("top_logprobs", "OpenAI", 2, "0 to 20 best tokens per position; needs logprobs"),
    _honoured(
        "tools", "OpenAI", [{"type": "function", "function": {"name": "f"}}],
        "rendered by the chat template; calls stay in the text, they are not parsed yet",
    ),
    _honoured("tool_choice", "OpenAI", "none", "none and auto; required or a named tool: 400 (needs a grammar)"),
    _honoured("add_special_tokens", "vLLM", True, "the tokeniser adds BOS; default false: templates write their own"),
    _honoured("add_generation_prompt", "vLLM", False, "open the assistant's turn; default true"),
    _honoured("continue_final_message", "vLLM", True, "go on writing the last message"),
    _honoured("chat_template_kwargs", "vLLM", {"enable_thinking": True}, "variables for the chat template"),
    _honoured("documents", "vLLM", [{"text": "x"}], "for templates that print documents; else a 400"),
    _honoured("reasoning_effort", "OpenAI", "low", "for templates that read it; else a 400, unless none is asked"),
    *_SHARED,
    _inert("metadata", "OpenAI", {"a": "b"}, "labels for stored completions"),
    _inert("safety_identifier", "OpenAI", "x", "a label"),
    _inert("prompt_cache_key", "OpenAI", "x", "a routing hint; caching is by content"),
    _inert("prompt_cache_retention", "OpenAI", "24h", "a hint; blocks stay until their memory is needed"),
    _inert("prediction", "OpenAI", {"type": "content", "content": "x"}, "may only speed things up"),
    _refused("store", "OpenAI", True, "nothing is stored", False),
    _refused("service_tier", "OpenAI", "flex", "there is one tier", "auto", "default"),
    _refused("modalities", "OpenAI", ["audio"], "text only", ["text"]),
    _refused("audio", "OpenAI", {"voice": "x"}, "text only"),
    _refused("verbosity", "OpenAI", "low", "models are not asked for a verbosity", "medium"),
    _refused("web_search_options", "OpenAI", {"a": 1}, "there is no web search"),
    _refused("parallel_tool_calls", "OpenAI", False, "calls are the model's choice until there is a grammar", True),
    _refused("functions", "OpenAI", [{"name": "f"}], "deprecated; use tools", []),
    _refused("function_call", "OpenAI", "auto", "deprecated; use tool_choice"),
    _refused("echo", "vLLM", True, "not for chat; continue_final_message knows the text", False),
    _refused("chat_template", "vLLM", "{{ 1 }}", "templates come from the operator: start with --chat-template"),
    _refused("include_reasoning", "vLLM", False, "reasoning is not parsed yet; it is part of the text", True),
    _refused("mm_processor_kwargs", "vLLM", {"a": 1}, "text only", {}),
    _refused("media_io_kwargs", "vLLM", {"a": 1}, "text only", {}),
    _refused("best_of", "vLLM", 3, "not built; use n", 1),
)  # fmt: skip

COMPLETION_FIELDS: tuple[Field, ...] = (
    _honoured("prompt", "OpenAI", None, "text, texts, token ids, or several lists of token ids"),
    _honoured("logprobs", "OpenAI", 1, "0 to 20 best tokens per position; 0: of the chosen token only"),
    _honoured("echo", "OpenAI", True, "the prompt comes first in the text (and in logprobs)"),
    _honoured("add_special_tokens", "vLLM", False, "the tokeniser adds BOS; default true"),
    *_SHARED,
    _refused("suffix", "OpenAI", "x", "fill-in-the-middle is not built", ""),
    _refused("best_of", "OpenAI", 3, "not built; use n", 1),
    _refused("prompt_embeds", "vLLM", "x", "send text or token ids"),
)

TABLES: Mapping[str, tuple[Field, ...]] = {
    "/v1/chat/completions": CHAT_FIELDS,
    "/v1/completions": COMPLETION_FIELDS,
}
_REFUSED = {
    ChatRequest: tuple(row for row in CHAT_FIELDS if row.verdict == "refused"),
    CompletionRequest: tuple(row for row in COMPLETION_FIELDS if row.verdict == "refused"),
}


def check_refused(body: ChatRequest | CompletionRequest) -> None:
    """Raise :class:`Unsupported` for the first refused field that asks for something."""
    for row in _REFUSED[type(body)]:
        value = getattr(body, row.name)
        if value is None or any(_same(value, neutral) for neutral in row.neutral):
            continue
        shown = json.dumps(value, default=str)
        raise Unsupported(
            f"{row.name} is {shown[:80]}: {row.note}", hint=f"leave {row.name} out", param=row.name
        )


def _same(value: Any, neutral: Any) -> bool:
    """Equality that does not take True for 1."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def unknown_field(name: str, known: Iterable[str], where: str = "") -> InvalidRequest:
    """The error for a field that nobody documents; names the nearest known one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see docs/reference/fields.md for the known ones"
    return InvalidRequest(f"unknown field {name!r}{where}", hint=hint, param=name)


def render_page() -> str:
    """The reference page, Markdown."""
    lines = [
        "# Request fields",
        "",
        "Generated by `python -m xllm.api.fields`; a test keeps it equal to the table and the table equal to what",
        "the server does. *Honoured*: has the documented effect. *Inert*: has no effect by its meaning. *Refused*: a",
        "400 that names the field, unless it has one of the values listed as accepted. A field that is in no table is",
        "a 400 too. `null` always means: not given. Defaults: the request, then the model's generation_config.json",
        "(`--generation-config`), then neutral values (temperature 1, top_p 1, top_k 0).",
    ]
    for endpoint, rows in TABLES.items():
        lines += [
            "",
            f"## POST {endpoint}",
            "",
            "| Field | Known from | | Meaning here |",
            "|---|---|---|---|",
        ]
        for row in rows:
            accepted = ", ".join(f"`{json.dumps(value)}`" for value in _shown(row.neutral))
            note = f"{row.note}. Accepted: {accepted}" if accepted else row.note
            lines.append(f"| `{row.name}` | {row.source} | {row.verdict} | {note} |")
    lines += ["", "## Events of a stream", ""]
    lines += [
        "Each event carries `id: REQUEST:CHOICE:INDEX`, where INDEX counts the choice's tokens up to and including the",
        "event. The first event of a chat choice has the role, the last one the finish reason. An error inside a",
        'stream is an event `data: {"error": {...}}`, and no `[DONE]` follows it.',
    ]
    return "\n".join(lines) + "\n"


def _shown(values: tuple[Any, ...]) -> list[Any]:
    return [value for value in values if not isinstance(value, float)]


if __name__ == "__main__":
    sys.stdout.write(render_page())
