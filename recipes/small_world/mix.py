"""Which families a document comes from, and the fixed held-out evaluation set."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .arithmetic import calculation_document, sum_document
from .chat import name_document, talk_document
from .followups import followup_document, mixed_document
from .phrases import Document, Writer
from .questions import capital_document, fact_document
from .stories import story_document
from .structured import json_document
from .texts import text_document
from .thinking import think_document
from .tooluse import tool_document

# family -> its share of the documents early and late in the run: facts and sums are learned first, then what
# has to be copied exactly out of the conversation (JSON, tool calls, names) gets more room
WEIGHTS = (
    (capital_document, 9.0, 3.5), (fact_document, 20.0, 22.0), (calculation_document, 19.0, 10.0),
    (talk_document, 7.0, 6.5), (followup_document, 14.0, 11.0), (mixed_document, 6.0, 5.0),
    (text_document, 6.0, 6.0), (json_document, 9.0, 16.0), (tool_document, 5.0, 15.0),
    (think_document, 4.0, 4.0), (story_document, 2.5, 1.0), (name_document, 1.0, 2.0),
)  # fmt: skip
_MAKERS = [maker for maker, _, _ in WEIGHTS]
_EARLY = [share for _, share, _ in WEIGHTS]
_LATE = [share for _, _, share in WEIGHTS]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are helpful.", "You are a friendly assistant.",
    "Be brief.", "You are a small model.", "Answer the questions of the user.", "You are a teacher.", "Be polite.",
    "You are the xLLM demo model.", "Answer in English.", "You are a helpful, honest assistant. Answer shortly.",
)  # fmt: skip
RULES = (
    "Be polite.", "Keep answers short.", "Use simple words.", "Do not lie.", "Answer every question.", "Never be rude.",
    "Say so when you do not know something.", "Use full sentences.", "Write in English.", "Help the user.",
    "Check your sums.", "Do not repeat yourself.", "Stay on the topic.", "Be kind to everybody.", "Use the tools you have.",
)  # fmt: skip


def _with_system(w: Writer, document: Document) -> Document:
    """Some conversations start with a system prompt, a few with a long one."""
    if document.messages[0]["role"] == "system" or not w.chance(0.12):
        return document
    text = w.rng.choice(SYSTEM_PROMPTS)
    if w.chance(0.25):
        text += " " + " ".join(w.rng.choices(RULES, k=w.rng.randint(2, 30)))
    document.messages.insert(0, {"role": "system", "content": text})
    return document


def training_document(rng: random.Random, *, late: bool = False) -> Document:
    """One conversation from the training side of every pool."""
    w = Writer(rng)
    maker = rng.choices(_MAKERS, _LATE if late else _EARLY)[0]
    document = maker(w)
    if maker is mixed_document and w.chance(0.08):
        document = mixed_document(w, max_exchanges=40)
    return _with_system(w, document)


EVALUATION = (
    (capital_document, 200), (fact_document, 300), (sum_document, 200), (calculation_document, 100),
    (json_document, 150), (tool_document, 220), (followup_document, 200), (talk_document, 100), (text_document, 100),
    (think_document, 60), (mixed_document, 60), (story_document, 20),
)  # fmt: skip


def evaluation_documents(seed: int) -> Iterator[Document]:
    """The held-out set: a function of the seed alone; the last message of each is the expected answer."""
    for number, (maker, count) in enumerate(EVALUATION):
        w = Writer(random.Random(seed * 1000 + number), held=True)
        for _ in range(count):
            yield maker(w)
