"""The pool of request bodies, and what an undisturbed cluster answers to each.

Every body fixes its seed, so its answer is one value: a timed engine's token is a hash of everything before it, the
seed and the choice; a real model's follows from (model, seed). Log-probabilities are compared, too: to the last bit on
timed engines, within ``REAL_TOLERANCE`` on a real model, where another batch sums in another order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

Body = dict[str, Any]
WORDS = [
    "river",
    "stone",
    "lamp",
    "window",
    "green",
    "seven",
    "walk",
    "under",
    "quiet",
    "paper",
    "north",
    "engine",
    "salt",
    "bread",
    "cloud",
]
KINDS = (
    "greedy", "seeded", "n", "penalties", "stop string", "stop id", "logprobs", "min tokens", "mixed",
)  # fmt: skip
"""``mixed`` is everything at once: several choices, a seed, penalties, a stop string and log-probabilities."""
PENALTIES = {"frequency_penalty": 0.5, "presence_penalty": 0.3, "repetition_penalty": 1.1}
LOGPROBS = {"logprobs": 2, "return_tokens_as_token_ids": True}
"""By id, since two tokens may have one name."""
REAL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Position:
    """Log-probabilities of one token as the completions format shows them."""

    token: str
    logprob: float
    offset: int
    top: tuple[tuple[str, float], ...]
    """The best tokens there and the chosen one, by name."""


@dataclass
class Choice:
    """What a client has of one choice."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: tuple[Position, ...] = ()


@dataclass
class Answer:
    """All of a response that must not depend on what broke meanwhile."""

    choices: list[Choice]
    num_output_tokens: int | None = None
    num_prompt_tokens: int | None = None


@dataclass
class Case:
    """A body and its one right answer."""

    kind: str
    body: Body
    expected: Answer
    tolerance: float = 0.0
    """Of log-probabilities."""


def build_bodies(
    rng: random.Random, count: int, *, max_tokens: int, kinds: Sequence[str] = KINDS
) -> list[tuple[str, Body]]:
    """Bodies of ``kinds`` in turn; those with stops get them from :func:`add_stops`."""
    bodies = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        prompt = " ".join(rng.choice(WORDS) for _ in range(rng.choice((5, 20, 60))))
        if (number + number // len(kinds)) % 3 == 0:  # a common beginning, for the prefix cache
            prompt = " ".join(WORDS * 3) + " " + prompt
        body: Body = {
            "model": "demo",
            "prompt": prompt,
            "max_tokens": rng.randint(max_tokens // 8, max_tokens),
            "ignore_eos": True,
            "return_token_ids": True,
            "temperature": 0.0 if kind in ("greedy", "stop string", "stop id") else 1.0,
            "seed": number,
        }
        if kind == "n":
            body["n"] = rng.randint(2, 3)
        elif kind == "penalties":
            body |= PENALTIES
        elif kind == "mixed":
            body |= {"n": 2, **LOGPROBS, **PENALTIES}
        elif kind == "logprobs":
            body |= LOGPROBS
        bodies.append((kind, body))
    return bodies


def add_stops(rng: random.Random, kind: str, body: Body, plain: Answer) -> Body:
    """Stops taken from the answer without them, so that they act in the middle."""
    ids, text = plain.choices[0].token_ids, plain.choices[0].text
    middle = rng.randrange(len(ids) // 3, max(len(ids) * 2 // 3, len(ids) // 3 + 1))
    if kind == "stop id":
        return {**body, "stop_token_ids": [ids[middle]]}
    if kind == "min tokens":
        return {**body, "stop_token_ids": [ids[middle]], "min_tokens": len(ids) // 2}
    if kind in ("stop string", "mixed"):
        start = len(text) * middle // len(ids)
        piece = text[start : start + 6].replace("\ufffd", "")
        return {**body, "stop": [piece]} if len(piece) >= 2 else body
    return body


async def build_pool(
    session: aiohttp.ClientSession,
    url: str,
    seed: int,
    *,
    count: int,
    max_tokens: int,
    tolerance: float = 0.0,
    kinds: Sequence[str] = KINDS,
) -> list[Case]:
    """Ask everything once, undisturbed; ``tolerance`` of log-probabilities is 0 where engines are timed."""
    rng = random.Random(seed)
    bodies = build_bodies(rng, count, max_tokens=max_tokens, kinds=kinds)
    plain = await _ask_all(session, url, [body for _, body in bodies])
    bodies = [
        (kind, add_stops(rng, kind, body, found)) for (kind, body), found in zip(bodies, plain, strict=True)
    ]
    answers = await _ask_all(session, url, [body for _, body in bodies])
    cases = [
        Case(kind, body, answer, tolerance) for (kind, body), answer in zip(bodies, answers, strict=True)
    ]
    stopped = [
        case for case in cases if any(choice.finish_reason == "stop" for choice in case.expected.choices)
    ]
    assert count < len(KINDS) or stopped, "no stop ever acts"
    return cases


async def _ask_all(session: aiohttp.ClientSession, url: str, bodies: Sequence[Body]) -> list[Answer]:
    gate = asyncio.Semaphore(8)

    async def ask(body: Body) -> Answer:
        async with gate, session.post(f"{url}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            return parse_answer(await response.json())

    return list(await asyncio.gather(*map(ask, bodies)))


def parse_answer(found: Any) -> Answer:
    """A response that was not streamed."""
    choices = [
        Choice(
            c["text"],
            tuple(c["token_ids"]),
            c["finish_reason"],
            c.get("stop_reason"),
            parse_logprobs(c.get("logprobs")),
        )
        for c in sorted(found["choices"], key=lambda c: int(c["index"]))
    ]
    return Answer(choices, found["usage"]["completion_tokens"], found["usage"]["prompt_tokens"])


def parse_logprobs(found: Any) -> tuple[Position, ...]:
    """A ``logprobs`` object of the completions format, of a whole answer or of one event."""
    if not found:
        return ()
    columns = found["tokens"], found["token_logprobs"], found["text_offset"], found["top_logprobs"]
    return tuple(
        Position(token, logprob, offset, tuple(sorted(top.items())))
        for token, logprob, offset, top in zip(*columns, strict=True)
    )


class StreamBooks:
    """Puts the events of a stream together."""

    def __init__(self, num_choices: int) -> None:
        self.answer = Answer([Choice() for _ in range(num_choices)])
        self.is_done = False
        self.after_the_end = 0
        """Tokens after a choice's end."""

    def take(self, event: Any) -> None:
        """One parsed data event."""
        if event.get("usage"):
            self.answer.num_output_tokens = event["usage"]["completion_tokens"]
            self.answer.num_prompt_tokens = event["usage"]["prompt_tokens"]
        for found in event.get("choices", ()):
            choice = self.answer.choices[found["index"]]
            ids = tuple(found.get("token_ids") or ())
            if choice.finish_reason is not None:
                self.after_the_end += 1 + len(ids)
            choice.token_ids += ids
            choice.text += found.get("text") or ""
            choice.logprobs += parse_logprobs(found.get("logprobs"))
            if found.get("finish_reason") is not None:
                choice.finish_reason = found["finish_reason"]
                choice.stop_reason = found.get("stop_reason")


def difference(case: Case, got: Answer) -> str | None:
    """How a whole answer is not the expected one."""
    expected = case.expected
    for index, (mine, right) in enumerate(zip(got.choices, expected.choices, strict=True)):
        text = prefix_difference(case, index, mine)
        if text is not None:
            return text
        if len(mine.token_ids) < len(right.token_ids):
            return f"choice {index}: {len(right.token_ids) - len(mine.token_ids)} tokens are lost"
        if len(mine.logprobs) < len(right.logprobs):
            return f"choice {index}: {len(right.logprobs) - len(mine.logprobs)} log-probabilities are lost"
        for name in ("text", "finish_reason", "stop_reason"):
            found, wanted = getattr(mine, name), getattr(right, name)
            if found != wanted:
                return f"choice {index}: {name} is {found!r:.200}, not {wanted!r:.200}"
    for name in ("num_output_tokens", "num_prompt_tokens"):
        if getattr(got, name) != getattr(expected, name):
            return f"usage: {name} is {getattr(got, name)}, not {getattr(expected, name)}"
    return None


def prefix_difference(case: Case, index: int, mine: Choice) -> str | None:
    """How what has come of a choice is no beginning of the expected one."""
    right = case.expected.choices[index]
    for place, (a, b) in enumerate(zip(mine.token_ids, right.token_ids, strict=False)):
        if a != b:
            is_repeated = (
                mine.token_ids[place:] and place and mine.token_ids[place] == right.token_ids[place - 1]
            )
            what = "duplicated" if is_repeated else "changed"
            return f"choice {index}: token {place} of {len(right.token_ids)} is {what}: {a}, not {b}"
    if len(mine.token_ids) > len(right.token_ids):
        return f"choice {index}: {len(mine.token_ids) - len(right.token_ids)} tokens too many (duplicated)"
    if not right.text.startswith(mine.text):
        return f"choice {index}: the text differs: {mine.text[-80:]!r}"
    if len(mine.logprobs) > len(right.logprobs):
        return f"choice {index}: {len(mine.logprobs) - len(right.logprobs)} log-probabilities too many"
    for place, (found, wanted) in enumerate(zip(mine.logprobs, right.logprobs, strict=False)):
        if not is_close(found, wanted, case.tolerance):
            return f"choice {index}: log-probabilities of token {place} are {found}, not {wanted}"
    return None


def is_close(mine: Position, right: Position, tolerance: float) -> bool:
    """Equal but for ``tolerance``; alternatives that are as close to each other may stand for one another."""
    if (mine.token, mine.offset) != (right.token, right.offset) or len(mine.top) != len(right.top):
        return False
    pairs = [(mine.logprob, right.logprob)]
    pairs += zip(sorted(value for _, value in mine.top), sorted(value for _, value in right.top), strict=True)
    wanted = dict(right.top)
    pairs += [(value, wanted[name]) for name, value in mine.top if name in wanted]
    if not tolerance and wanted.keys() != dict(mine.top).keys():
        return False
    return all(abs(a - b) <= tolerance for a, b in pairs)
