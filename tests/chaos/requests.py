"""The pool of request bodies, and what an undisturbed cluster answers to each.

Every body fixes its seed, so its answer is one value: a timed engine's token is a hash of everything before it, the
seed and the choice; a real model's follows from (model, seed).
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
KINDS = ("greedy", "seeded", "n", "penalties", "stop string", "stop id", "logprobs", "min tokens")


@dataclass
class Choice:
    """What a client has of one choice."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    stop_reason: Any = None


@dataclass
class Answer:
    """All of a response that must not depend on what broke meanwhile."""

    choices: list[Choice]
    num_output_tokens: int | None = None


@dataclass
class Case:
    """A body and its one right answer."""

    kind: str
    body: Body
    expected: Answer


def build_bodies(rng: random.Random, count: int, *, max_tokens: int) -> list[tuple[str, Body]]:
    """Bodies of every kind; those with stops get them from :func:`add_stops`."""
    bodies = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        prompt = " ".join(rng.choice(WORDS) for _ in range(rng.choice((5, 20, 60))))
        if number % 3 == 0:  # a common beginning, for the prefix cache
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
            body |= {"frequency_penalty": 0.5, "presence_penalty": 0.3, "repetition_penalty": 1.1}
        elif kind == "logprobs":
            body["logprobs"] = 2
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
    if kind == "stop string":
        start = len(text) * middle // len(ids)
        piece = text[start : start + 6].replace("\ufffd", "")
        return {**body, "stop": [piece]} if len(piece) >= 2 else body
    return body


async def build_pool(
    session: aiohttp.ClientSession, url: str, seed: int, *, count: int, max_tokens: int
) -> list[Case]:
    """Ask everything once, undisturbed."""
    rng = random.Random(seed)
    bodies = build_bodies(rng, count, max_tokens=max_tokens)
    plain = await _ask_all(session, url, [body for _, body in bodies])
    bodies = [
        (kind, add_stops(rng, kind, body, found)) for (kind, body), found in zip(bodies, plain, strict=True)
    ]
    answers = await _ask_all(session, url, [body for _, body in bodies])
    cases = [Case(kind, body, answer) for (kind, body), answer in zip(bodies, answers, strict=True)]
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
        Choice(c["text"], tuple(c["token_ids"]), c["finish_reason"], c.get("stop_reason"))
        for c in sorted(found["choices"], key=lambda c: int(c["index"]))
    ]
    return Answer(choices, found["usage"]["completion_tokens"])


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
        for found in event.get("choices", ()):
            choice = self.answer.choices[found["index"]]
            ids = tuple(found.get("token_ids") or ())
            if choice.finish_reason is not None:
                self.after_the_end += 1 + len(ids)
            choice.token_ids += ids
            choice.text += found.get("text") or ""
            if found.get("finish_reason") is not None:
                choice.finish_reason = found["finish_reason"]
                choice.stop_reason = found.get("stop_reason")


def difference(case: Case, got: Answer) -> str | None:
    """How a whole answer is not the expected one."""
    for index, (mine, right) in enumerate(zip(got.choices, case.expected.choices, strict=True)):
        text = prefix_difference(case, index, mine)
        if text is not None:
            return text
        if len(mine.token_ids) < len(right.token_ids):
            return f"choice {index}: {len(right.token_ids) - len(mine.token_ids)} tokens are lost"
        if mine != right:
            return f"choice {index}: {mine!r:.300} is not {right!r:.300}"
    if got.num_output_tokens != case.expected.num_output_tokens:
        return f"usage says {got.num_output_tokens} tokens, not {case.expected.num_output_tokens}"
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
    return None
