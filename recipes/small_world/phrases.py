"""Phrasings: train and held-out pools, question frames, and the surface noise around a question.

A held-out pool is never read while training text is made: `Split` decides which side every pick takes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SYLLABLES = (
    "ba be bo da de do fa fi ga go ha he ka ke ki ko la le li lo ma me mi mo na ne ni no pa pe po ra re ri ro "
    "sa se si so ta te ti to va ve vi wa we ya yo za ze zo bar bel can dor fin gal hol jen kar lan mor nor pel "
    "quin ros sol tan ul vor wil xan yor zel ing ton ville stad burg land ia"
).split()
FILLERS = (
    "really actually maybe today now quickly simply kindly perhaps honestly well exactly again briefly just "
    "also then here there please friend sir madam buddy ok right sure basically so hmm um like"
).split()


_CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")


CHATTER = (
    "my your our the a this that one another some every daughter mother father uncle aunt boss neighbour class group "
    "kids team quiz game test lesson wants asks needs likes hopes says wonders thought heard said told asked to for with "
    "about of on in me you us them here there now again still soon first last good new old nice short little kind to see "
    "hear meet think thing question word answer problem day time week is was has have let try look it so and but then"
).split()


@dataclass(frozen=True)
class Pool:
    """Two disjoint sets of phrasings of one intent; ``[a|b|]`` in a phrasing stands for any of its parts."""

    train: Sequence[str]
    held: Sequence[str]
    is_part: bool = False  # a noun phrase that a (held-out) frame goes around: it may be in both sets

    def __post_init__(self) -> None:
        overlap = set(self.train) & set(self.held)
        assert self.is_part or not overlap, f"phrasings in both sets: {overlap}"


def part(train: Sequence[str], held: Sequence[str]) -> Pool:
    """A pool of noun phrases."""
    return Pool(train, held, is_part=True)


@dataclass
class Writer:
    """Random choices for one document: the generator plus the side of the split it reads."""

    rng: random.Random
    held: bool = False

    def pick(self, pool: Pool, *places: Any, **values: Any) -> str:
        """One phrasing of the pool on this writer's side, with its {fields} filled."""
        text = self._spelled_out(self.rng.choice(pool.held if self.held else pool.train))
        while not (self.held or pool.is_part) and text in pool.held:  # a grammar can arrive at a held-out one
            text = self._spelled_out(self.rng.choice(pool.train))
        return text.format(*places, **values)

    def _spelled_out(self, text: str) -> str:
        while match := _CHOICE.search(text):
            text = text[: match.start()] + self.rng.choice(match[1].split("|")) + text[match.end() :]
        return text

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def made_up_word(self) -> str:
        """A capitalised word of two to four syllables that means nothing."""
        return "".join(self.rng.choice(SYLLABLES) for _ in range(self.rng.randint(2, 4))).capitalize()

    def ask(self, phrase: Pool) -> str:
        """A question whose pool entries hold {np}-free ready text."""
        return self.noisy(self.pick(phrase))

    def noun_question(self, noun_phrase: str) -> str:
        """A framed, noisy question for a noun phrase such as "the capital of France"."""
        return self.noisy(self.pick(FRAMES, np=noun_phrase))

    def noisy(self, text: str, *, keep_case: bool = False) -> str:
        """Openers, closers, filler words, casing and punctuation around a question."""
        if self.held:
            return self._held_surface(text)
        rng = self.rng
        if rng.random() < 0.3:
            text = (self.pick(OPENERS) if rng.random() < 0.8 else self._chatter()) + text
        if rng.random() < 0.2:
            text = text + self.pick(CLOSERS)
        if rng.random() < 0.12:
            text = self._with_fillers(text)
        if rng.random() < 0.15 and not keep_case:
            text = text.lower()
        elif rng.random() < 0.02 and not keep_case:
            text = text.upper()
        if rng.random() < 0.15:
            text = text.rstrip("?.!")
        elif rng.random() < 0.08:
            text = text.rstrip("?.!") + rng.choice(("??", "!", "...", " ?", ".", "?!"))
        return text

    def _held_surface(self, text: str) -> str:
        if self.chance(0.25):
            text = self.rng.choice(OPENERS.held) + text
        if self.chance(0.2):
            text = text + self.rng.choice(CLOSERS.held)
        return text

    def _chatter(self) -> str:
        """A few words that mean nothing here: what stands before a question is not part of it."""
        words = [self.rng.choice(CHATTER) for _ in range(self.rng.randint(2, 6))]
        return " ".join(words).capitalize() + self.rng.choice((". ", ": ", ", ", "! "))

    def _with_fillers(self, text: str) -> str:
        words = text.split(" ")
        for _ in range(self.rng.randint(1, 3)):
            word = self.rng.choice(FILLERS) if self.rng.random() < 0.7 else self.made_up_word().lower()
            words.insert(self.rng.choice((0, len(words), self.rng.randint(0, len(words)))), word)
        return " ".join(words)


@dataclass
class Document:
    """One conversation: messages in OpenAI form, plus what the last answer must hold (for evaluation)."""

    messages: list[dict[str, Any]]
    family: str
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False
    expect: list[str] = field(default_factory=list)
    expect_json: Any = None
    expect_calls: list[dict[str, Any]] = field(default_factory=list)


def user(text: str) -> dict[str, Any]:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """An assistant message."""
    return {"role": "assistant", "content": text}


OPENERS = Pool(
    train=(
        "Hi, ", "Hi! ", "Hello, ", "Hello! ", "Hey, ", "Hey! ", "Ok, ", "Okay. ", "Please, ", "So, ", "Well, ",
        "Now, ", "Excuse me, ", "Next question. ", "One more: ", "Sorry, ", "Question: ", "I have a question. ",
        "Tell me, ", "Listen, ", "Great. ", "Thanks. ", "Dear assistant, ", "Quick question: ", "By the way, ",
        "And now: ", "Hmm, ", "I am curious. ", "A friend asked me this. ", "Let me test you. ",
        "I am learning a lot today. ", "Here is a question for you. ",
        "My [daughter|mother|father|friend|boss|brother|sister|uncle|neighbour|teacher|wife] [wants to know|asks|asked me|asked|would like to know|wonders][:|,] ",
        "[Nice|Great|Lovely|Glad|Happy] to [see|meet|have|hear|find] you[!|.| again!| here.] ",
        "I [have|had|got|bring] [a|one|one more|another|a new|a short|the next] [one|question|thing|problem][: |. |, | for you. | now: ]",
        "[Hey|Hi|Hello|Alright|All right|Right|Good|Fine|Okay|Ok|Yes|Oh|Ah|Wow|Sorry][ there| again| you| friend| then| now|][, |! |. ]",
        "[Only|Just|Simply|Still] [asking|wondering|checking|testing|a question][: |. |, ]",
        "[Let me|Let us|Let's] [ask|think|try|start|go on|check][. |: ]", "[Forgive|Pardon|Excuse|Help|Ask] me[: |. |, ]",
    ),
    held=(
        "Good to see you! ", "Alright then, ", "Hey there, ", "I have another one for you: ", "Just curious: ",
        "Let's see. ", "My son wants to know: ", "Pardon me, ",
    ),
)  # fmt: skip
CLOSERS = Pool(
    train=(
        " Thanks!", " Thank you.", " please", " Please.", " Please answer.", " Thanks in advance.", " I need it now.",
        " Be short.", " Thank you very much.", " Answer me.", " Go!", " Do you know it?", " Help me.",
        " I forgot it.", " It is important.", " It is for school.",
        " [Thanks|Many thanks|Thank you|Cheers][ a lot| so much| again| in advance|, friend][.|!]",
        " I [really|badly|just|do|would] [need it|have to know|want to understand|want to hear it|like to know][.|!]",
        " [That|This|It] [would|will|could] [help|be great|be nice|make me happy|save my day|be useful][ me| a bit| very much|][.|!]",
    ),
    held=(" Many thanks!", " I really want to know.", " That would help a lot.", " Cheers!"),
)  # fmt: skip

FRAMES = Pool(
    train=(
        "What is {np}?", "What is {np}?", "What is {np}?", "What's {np}?", "What's {np}?", "Whats {np}", "What is {np}",
        "Tell me {np}.", "Tell me what {np} is.", "Can you tell me {np}?", "Can you tell me what {np} is?",
        "Could you tell me {np}?", "Could you tell me what {np} is?", "Do you know {np}?", "Do you know what {np} is?",
        "I want to know {np}.", "I would like to know {np}.", "I'd like to know what {np} is.", "Name {np}.",
        "Give me {np}.", "{np}?", "{np}", "Please tell me {np}.", "Please name {np}.", "Say {np}.",
        "Any idea what {np} is?", "I need to know {np}.", "Let me know {np}.", "May I ask what {np} is?",
        "Question: what is {np}?", "Q: {np}?", "Quiz: what is {np}?", "Help me: what is {np}?",
        "What was {np} again?", "Remind me what {np} is.", "I forgot {np}.", "I am looking for {np}.",
        "Which one is {np}?", "So what is {np}?", "What would {np} be?", "Just tell me {np}.", "What do you call {np}?",
        "Are you able to tell me {np}?", "Find {np}.", "Show me {np}.", "Write down {np}.", "I ask you for {np}.",
        "Can you name {np}?", "Could you give me {np}?", "You know {np}, right?", "What exactly is {np}?",
        "Does anyone know {np}?", "Answer this: what is {np}?", "Who can tell me {np}?", "Explain what {np} is.",
        "We are looking for {np}.", "I have to find {np}.", "I do not know {np}. Do you?", "How do you call {np}?",
        "In the quiz they ask for {np}.", "What did you say {np} is?", "Next: {np}.", "Look up {np}.",
        "Is it true that you know {np}?", "I bet you know {np}.", "Try to name {np}.", "What might {np} be?",
        "I [always|often|sometimes|tend to|still] [forget|mix up|look for|ask for] {np}[.|, help me.|, do you know it?|. Remind me?]",
        "[Do|Did|Would|Could|Might] you [know|remember|recall|have|happen to remember|be able to tell me] {np}?",
        "My [boss|mother|class|friend|book|sister|teacher] [wants me to|asked me to|says I should|told me to] [find|say|write down|learn|remember|know] {np}.",
        "[Quick|Fast|Short|Easy|Hard|Next|Another] [question|one|try|thing]: {np}[?|.|]", "[I was asking myself|I am wondering|I wonder|I asked] what {np} [is|was|could be].",
        "[Could|Can|Would|Will] you [please|kindly|quickly|just|] [find|look up|search|tell|check|name|say] {np}[ for me| for us| now|]?",
        "[Help|Assist|Support|Guide] me with {np}[.|, will you?|, thank you.]", "For [my|our|the|a] [homework|test|class|school|quiz|exam|game] [I need|we need|I want|they want] {np}.",
        "[Be nice|Be good|Please be kind|Do me a favour|Be so good] and [tell|give|show|name] me {np}.", "Would you mind [telling|giving|showing|naming] me {np}?",
        "I [can't|cannot|can not|don't|could not] [recall|find|think of|remember|say|name] {np}[. Help?|. Do you know it?|. Can you?|, can you?|. Which one is it?]",
        "If [I asked|they asked|somebody asks|someone asked] [you|me] [for|about] {np}, what [is right|do I say|should I say|is the answer]?",
        "[Have you got|Do you have|Is there|Have you] [an|any|some|a] [idea|clue|guess|answer] what {np} [is|might be|was]?", "[Hey|So|Well|Hi], what['s| is|] {np} [then|again|now|exactly]?",
        "The question is about {np}.", "This is about {np}: what is it?", "Let us talk about {np}. What is it?",
    ),
    held=(
        "I keep forgetting {np}, can you remind me?", "Would you happen to know {np}?",
        "My teacher wants me to name {np}.", "Quick one: {np}?", "I was wondering what {np} is.",
        "Could you please look up {np} for me?", "Help me out with {np}, please.", "For my homework I need {np}.",
        "Be so kind and tell me {np}.", "Mind telling me {np}?", "I can't remember {np}. What is it?",
        "If I asked you for {np}, what would you say?", "Do you have any clue what {np} is?",
        "Hey, what is {np} called?",
    ),
)  # fmt: skip
