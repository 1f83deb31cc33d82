"""Log-probabilities, penalties, bias and masks against plain definitions over transformers' logits."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import build_engine, request
from tests.equivalence.families import VOCAB
from xllm.types.output import PositionLogprobs

GetModel = Callable[[str], SmallModel]


def make_prompt(length: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(VOCAB) for _ in range(length))


def check_scores(
    scores: Sequence[PositionLogprobs | None], tokens: Sequence[int], logits: torch.Tensor, num_top: int
) -> None:
    """``logits [N, V]`` are those that predict ``tokens [N]``."""
    wanted = logits.log_softmax(dim=-1)
    assert len(scores) == len(tokens)
    for score, token, row in zip(scores, tokens, wanted, strict=True):
        assert score is not None
        assert score.token.token_id == token
        assert score.token.logprob == pytest.approx(float(row[token]), abs=2e-4)
        assert score.token.rank == int((row > row[token]).sum()) + 1
        best = row.topk(num_top)
        assert [t.logprob for t in score.top] == pytest.approx(best.values.tolist(), abs=2e-4)
        assert [t.rank for t in score.top] == list(range(1, num_top + 1))
        assert all(float(row[t.token_id]) == pytest.approx(t.logprob, abs=2e-4) for t in score.top)


@pytest.mark.parametrize("chunk", [1, 7, 64, None])
def test_prompt_and_output_logprobs_for_any_chunking(chunk: int | None, small_model: GetModel) -> None:
    model = small_model("qwen3")
    engine = build_engine(model.path, max_num_batched_tokens=chunk or 8192, max_num_seqs=min(chunk or 4, 4))
    prompts = {"a": make_prompt(50, 1), "b": make_prompt(16, 2), "c": make_prompt(1, 3)}
    for repeat in range(2):  # the second time the prompts are in the prefix cache
        requests = [
            request(f"{n}{repeat}", p, 6, temperature=1.0, seed=5, logprobs=3, prompt_logprobs=2)
            for n, p in prompts.items()
        ]
        done = engine.run([*requests, request(f"plain{repeat}", prompts["a"], 6)])
        assert done[f"plain{repeat}", 0].logprobs == [] and done[f"plain{repeat}", 0].prompt_logprobs is None
        for name, prompt in prompts.items():
            got = done[f"{name}{repeat}", 0]
            logits = model.reference.logits((*prompt, *got.token_ids))
            check_scores(got.logprobs, got.token_ids, logits[len(prompt) - 1 : -1], 3)
            if len(prompt) > 1:
                assert got.prompt_logprobs is not None and got.prompt_logprobs[0] is None
                check_scores(got.prompt_logprobs[1:], prompt[1:], logits[: len(prompt) - 1], 2)
    engine.close()


def test_logprobs_zero_is_the_sampled_token_alone(small_model: GetModel) -> None:
    engine = build_engine(small_model("qwen3").path)
    done = engine.run([request("a", make_prompt(9, 1), 4, logprobs=0), request("b", make_prompt(9, 2), 4)])[
        "a", 0
    ]
    assert [s.top for s in done.logprobs] == [()] * 4
    assert [s.token.token_id for s in done.logprobs] == done.token_ids
    assert all(s.token.rank == 1 for s in done.logprobs)  # greedy
    engine.close()


def processed_greedy(
    model: SmallModel, prompt: Sequence[int], num_tokens: int, params: dict[str, Any]
) -> list[int]:
    """Bias, penalties and masks by their definitions, one token at a time."""
    output: list[int] = []
    for _ in range(num_tokens):
        logits = model.reference.logits((*prompt, *output))[-1].tolist()
        for token, bias in params.get("logit_bias", {}).items():
            logits[token] += bias
        repetition = params.get("repetition_penalty", 1.0)
        for token in {*prompt, *output}:
            logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
        for token, count in Counter(output).items():
            logits[token] -= params.get("frequency_penalty", 0.0) * count + params.get(
                "presence_penalty", 0.0
            )
        allowed = params.get("allowed_token_ids") or range(VOCAB)
        forbidden = set(range(VOCAB)) - set(allowed)
        for words in params.get("bad_words_token_ids", ()):
            if tuple(output[len(output) - len(words) + 1 :]) == words[:-1]:
                forbidden.add(words[-1])
        for token in forbidden:
            logits[token] = float("-inf")
        output.append(max(range(VOCAB), key=lambda v: (logits[v], -v)))
    return output


@pytest.mark.parametrize("length", [1, 40])
def test_bias_penalties_and_masks_follow_their_definitions(length: int, small_model: GetModel) -> None:
    model = small_model("llama3-rope-tied")  # repeats itself unless something stops it
    prompt = make_prompt(length, 4)
    plain = model.reference.greedy(prompt, 20).tokens
    variants: dict[str, dict[str, Any]] = {
        "repetition": {"repetition_penalty": 1.3},
        "repetition below one": {"repetition_penalty": 0.7},
        "frequency": {"frequency_penalty": 1.5},
        "presence": {"presence_penalty": 2.0},
        "presence for repeats": {"presence_penalty": -2.0},
        "all penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.7, "presence_penalty": 0.5},
        "bias": {"logit_bias": {plain[0]: -100.0, plain[1]: -100.0, 17: 4.0}},
        "bias and penalties": {"logit_bias": {17: 6.0}, "frequency_penalty": 2.0, "repetition_penalty": 1.1},
        "allowed": {"allowed_token_ids": tuple(range(50, 90))},
        "bad words": {"bad_words_token_ids": ((plain[0],), plain[1:3])},
        "mixed": {"allowed_token_ids": tuple(range(30)), "repetition_penalty": 1.5, "logit_bias": {4: 3.0}},
    }
    engine = build_engine(model.path, max_num_batched_tokens=48)
    done = engine.run(
        [request("plain", prompt, 20), *(request(n, prompt, 20, **p) for n, p in variants.items())]
    )
    assert tuple(done["plain", 0].token_ids) == plain
    wanted = {name: processed_greedy(model, prompt, 20, params) for name, params in variants.items()}
    assert {name: done[name, 0].token_ids for name in variants} == wanted
    changed = [name for name in variants if tuple(wanted[name]) != plain]
    assert len(changed) >= len(variants) - 2, f"only {changed} change anything: the test shows nothing"
    engine.close()


def test_min_tokens_masks_the_end_until_it_is_reached(small_model: GetModel) -> None:
    model = small_model("qwen3")
    prompt = make_prompt(12, 6)
    plain = model.reference.greedy(prompt, 12).tokens
    stops = tuple(set(plain[:4]))
    engine = build_engine(model.path)
    early = engine.run([request("early", prompt, 12, stop_token_ids=stops)])["early", 0]
    assert early.finish_reason == "stop" and len(early.token_ids) == 1 and early.stop_reason == plain[0]
    late = engine.run([request("late", prompt, 40, stop_token_ids=stops, min_tokens=8)])["late", 0]
    assert len(late.token_ids) > 8 and not set(late.token_ids[:8]) & set(stops)
    assert sum(batch.has_mask for batch in engine.batches) == 8
    engine.close()
