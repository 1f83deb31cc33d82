"""Short think blocks, only when they are asked for (by the template switch or in words)."""

from __future__ import annotations

from .arithmetic import SUM_ASKS, addends, explain_sum, minus_question, times_question
from .chat import talk
from .phrases import Document, Pool, Writer, assistant, user
from .questions import any_question

THINK_ASKS = Pool(
    (" Think first.", " Think step by step.", " Think before you answer.", " Please think first.", " Think about it.",
     " Let's think step by step.", " Reason step by step.", " /think", " Think carefully.", " Use a think block."),
    (" Think it through step by step.", " Please think about it first.", " Take your time to think."),
)  # fmt: skip


def thought(note: str, answer: str) -> str:
    """An answer with its think block, in Qwen's layout."""
    return f"<think>\n{note}\n</think>\n\n{answer}"


def think_document(w: Writer) -> Document:
    """A question with thinking switched on."""
    style = w.rng.random()
    if style < 0.55:
        a, b = addends(w)
        question, answer, note = (
            w.noisy(w.pick(SUM_ASKS, a=a, b=b)),
            f"{a} + {b} = {a + b}.",
            explain_sum(a, b),
        )
        expect = [f"= {a + b}."]
    elif style < 0.7:
        exchange = minus_question(w) if w.chance(0.5) else times_question(w)
        question, answer, expect = exchange.question, exchange.answer, list(exchange.expect)
        note = f"I have to calculate {answer.split(' =')[0]}. That gives {answer.split('= ')[1]}"
    else:
        exchange = any_question(w) if w.chance(0.75) else talk(w)
        question, answer, expect = exchange.question, exchange.answer, list(exchange.expect)
        note = f"I look for the answer in what I know. I remember: {exchange.expect[-1]}."
    by_switch = w.chance(0.6)
    messages = []
    if w.chance(0.2):
        before = any_question(w)
        messages = [user(before.question), assistant(before.answer)]
    if not by_switch:
        question += w.pick(THINK_ASKS)
    messages += [user(question), assistant(thought(note, answer))]
    return Document(messages, "think", thinking=by_switch, expect=["<think>", "</think>", *expect])
