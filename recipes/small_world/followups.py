"""Multi-turn conversations whose later questions only make sense after the earlier ones."""

from __future__ import annotations

from typing import Any

from .arithmetic import any_calculation, sum_question
from .chat import name_document, talk
from .facts import ANIMALS, COUNTRIES, DAYS, MONTHS, OPPOSITES, Country
from .phrases import Document, Pool, Writer, assistant, user
from .questions import (
    ABOUT_COUNTRY,
    AFTER_ASKS,
    ATTRIBUTES,
    OPPOSITE_NOUNS,
    about_country,
    animal_answer,
    animal_attributes,
    any_question,
    ask_animal,
    ask_country,
    country_answer,
    country_value,
    named,
)  # fmt: skip
from .structured import AGAIN_JSON, country_object, dumps
from .texts import any_text

SAME_COUNTRY = {
    "capital": Pool(
        ("And its capital?", "What is its capital?", "And the capital?", "And what is its capital?", "Its capital?",
         "and its capital", "What about the capital?", "Which city is its capital?", "And which is the capital there?",
         "Tell me its capital.", "What's its capital?", "What is the capital?", "The capital?", "What is the capital there?",
         "And the capital city?"),
        ("So what would its capital be?", "And what is the capital called?", "Now tell me its capital.", "How about its capital?"),
    ),
    "continent": Pool(
        ("And its continent?", "Which continent is it in?", "Where is it?", "On which continent is it?", "And the continent?",
         "What continent is that?", "Which continent?", "Where does it lie?", "In which continent is that?"),
        ("And on what continent is it?", "How about its continent?", "Where can I find it?"),
    ),
    "language": Pool(
        ("And its language?", "What language do they speak there?", "And the language?", "Which language is spoken there?",
         "What do people speak there?", "What about the language?", "Its language?", "What is its language?",
         "What language do people speak?"),
        ("And what do they speak over there?", "How about its language?", "Which language do the people there speak?"),
    ),
    "currency": Pool(
        ("And its currency?", "What currency do they use?", "And the currency?", "What money do they use there?",
         "What about the currency?", "Which currency is used there?", "Its currency?", "How do people pay there?",
         "What is its currency?", "And the money?"),
        ("And what do they pay with over there?", "How about its currency?", "Which money would I need there?"),
    ),
}  # fmt: skip
OTHER_COUNTRY = Pool(
    ("And {c}?", "What about {c}?", "And of {c}?", "How about {c}?", "and {c}", "And what about {c}?", "{c}?", "Now {c}.",
     "The same for {c}?", "And for {c}?", "Also {c}?", "And in {c}?", "what about {c}", "And how is it with {c}?"),
    ("Now the same for {c}, please.", "Okay, and {c}?", "And what would it be for {c}?"),
)  # fmt: skip
STEP_ASKS = {
    "+": Pool(
        ("And plus {b}?", "Now add {b}.", "Plus {b}?", "And {b} more?", "Add {b}.", "and plus {b}", "plus {b}", "+ {b}",
         "Add {b} to that.", "And if I add {b}?", "What if you add {b}?", "Now plus {b}.", "And + {b}?", "Then add {b}.",
         "Add another {b}."),
        ("What is that plus {b}?", "Okay, now add {b} to it.", "And with {b} more?"),
    ),
    "-": Pool(
        ("And minus {b}?", "Now subtract {b}.", "Minus {b}?", "And {b} less?", "Subtract {b}.", "and minus {b}", "minus {b}",
         "- {b}", "Take away {b}.", "And if I take away {b}?", "Now minus {b}.", "And - {b}?", "Then subtract {b}."),
        ("What is that minus {b}?", "Okay, now take {b} away from it.", "And with {b} less?"),
    ),
    "*": Pool(
        ("Double it.", "And times {b}?", "Now multiply by {b}.", "And doubled?", "Times {b}?", "Twice that?",
         "Multiply that by {b}.", "and times {b}"),
        ("What is that times {b}?", "Please double that."),
    ),
}  # fmt: skip
NEXT_ASKS = Pool(
    ("And after that?", "And then?", "What comes next?", "And the next one?", "Next?", "And after {x}?", "And what is next?",
     "What comes after that?", "And what about {x}?"),
    ("And what follows that?", "So what comes after {x}?"),
)  # fmt: skip
ANIMAL_SAME = {
    "sound": Pool(("And what sound does it make?", "And its sound?", "What does it say?", "Which sound does it make?"),
                  ("And what noise would it make?",)),
    "young": Pool(("And what is its young called?", "What is its baby called?", "And its baby?", "And its young?"),
                  ("And how do you call its baby?",)),
    "legs": Pool(("And how many legs does it have?", "How many legs does it have?", "How many legs has it?", "And its legs?"),
                 ("And on how many legs does it walk?",)),
    "kind": Pool(("What kind of animal is it?", "And what kind of animal is that?", "Is it a mammal or a bird?"),
                 ("And what sort of animal is that?",)),
    "home": Pool(("Where does it live?", "And where does it live?", "And its home?", "Where is its home?"),
                 ("And where would I find it?",)),
}  # fmt: skip


def _country_talk(w: Writer, turns: int) -> Document:
    """Country questions where the country or the attribute carries over."""
    rng = w.rng
    country: Country = rng.choice(COUNTRIES)
    attribute = "capital" if w.chance(0.5) else rng.choice(ATTRIBUTES)
    if w.chance(0.15):
        first, answer = w.noisy(w.pick(ABOUT_COUNTRY, c=named(country))), about_country(country)
        about = True
    else:
        exchange = ask_country(w, country, attribute)
        first, answer, about = exchange.question, exchange.answer, False
    messages, value = [user(first), assistant(answer)], country_value(country, attribute)
    expect_json: Any = None
    for turn in range(turns):
        style = rng.random()
        if style < 0.5 or about:
            attribute = rng.choice([other for other in ATTRIBUTES if other != attribute or about])
            ask, about = w.pick(SAME_COUNTRY[attribute]), False
        elif style < 0.92 or turn < turns - 1:
            country = rng.choice(COUNTRIES)
            ask = w.pick(OTHER_COUNTRY, c=named(country))
        else:
            expect_json = country_object(country, (attribute,))
            messages += [user(w.pick(AGAIN_JSON)), assistant(dumps(expect_json))]
            break
        value = country_value(country, attribute)
        messages += [
            user(w.noisy(ask) if w.chance(0.5) else ask),
            assistant(country_answer(country, attribute)),
        ]
    return Document(messages, "followups", expect=[value], expect_json=expect_json)


def _number_talk(w: Writer, turns: int) -> Document:
    """A running result: plus, minus, double."""
    rng = w.rng
    exchange = sum_question(w)
    messages = [user(exchange.question), assistant(exchange.answer)]
    value = int(exchange.answer.rstrip(".").split("= ")[1])
    for _ in range(turns):
        kind = rng.choice("++-*") if value <= 40 else rng.choice("+--")
        if kind == "*":
            b = 2
            result = value * 2
        else:
            b = rng.randint(1, 20) if kind == "+" else rng.randint(1, max(1, min(value, 30)))
            result = value + b if kind == "+" else value - b
        ask = w.pick(STEP_ASKS[kind], b=b)
        if result < 0 or result > 150:
            break
        messages += [
            user(w.noisy(ask) if w.chance(0.4) else ask),
            assistant(f"{value} {kind} {b} = {result}."),
        ]
        value = result
    return Document(messages, "followups", expect=[messages[-1]["content"]])


def _animal_talk(w: Writer, turns: int) -> Document:
    """Animal questions where the animal or the attribute carries over."""
    rng = w.rng
    animal = rng.choice(ANIMALS)
    attribute = rng.choice(animal_attributes(animal))
    exchange = ask_animal(w, animal, attribute)
    messages, value = [user(exchange.question), assistant(exchange.answer)], exchange.expect[0]
    for _ in range(turns):
        if w.chance(0.5):
            attribute = rng.choice([other for other in animal_attributes(animal) if other != attribute])
            ask = w.pick(ANIMAL_SAME[attribute])
        else:
            animal = rng.choice([other for other in ANIMALS if attribute in animal_attributes(other)])
            article = "an" if animal.name[0] in "aeiou" else "a"
            ask = w.pick(OTHER_COUNTRY, c=f"{article} {animal.name}")
        answer, value = animal_answer(animal, attribute)
        messages += [user(ask), assistant(answer)]
    return Document(messages, "followups", expect=[value])


def _row_talk(w: Writer, turns: int) -> Document:
    """Days, months and opposites, one after the other."""
    rng = w.rng
    if w.chance(0.4):
        pairs = rng.sample(OPPOSITES, turns + 1)
        messages = [user(w.noun_question(w.pick(OPPOSITE_NOUNS, x=pairs[0][0]))),
                    assistant(f"The opposite of {pairs[0][0]} is {pairs[0][1]}.")]  # fmt: skip
        for x, y in pairs[1:]:
            messages += [user(w.pick(OTHER_COUNTRY, c=x)), assistant(f"The opposite of {x} is {y}.")]
        return Document(messages, "followups", expect=[f"is {pairs[-1][1]}"])
    unit, row = rng.choice((("day", DAYS), ("month", MONTHS)))
    i = rng.randrange(len(row))
    following = row[(i + 1) % len(row)]
    messages = [
        user(w.noisy(w.pick(AFTER_ASKS, unit=unit, x=row[i]))),
        assistant(f"After {row[i]} comes {following}."),
    ]
    for step in range(1, turns + 1):
        x, y = row[(i + step) % len(row)], row[(i + step + 1) % len(row)]
        messages += [user(w.pick(NEXT_ASKS, x=x)), assistant(f"After {x} comes {y}.")]
    return Document(messages, "followups", expect=[f"comes {y}"])


def followup_document(w: Writer) -> Document:
    """Any follow-up conversation."""
    turns = w.rng.choice((1, 1, 2, 2, 3, 4))
    style = w.rng.random()
    if style < 0.5:
        return _country_talk(w, turns)
    if style < 0.74:
        return _number_talk(w, turns)
    if style < 0.84:
        return _animal_talk(w, turns)
    return _row_talk(w, turns) if style < 0.93 else name_document(w)


def mixed_document(w: Writer, *, max_exchanges: int = 8) -> Document:
    """A conversation that jumps between topics; the last question is the evaluated one."""
    messages: list[dict[str, Any]] = []
    makers = (any_question, any_question, any_calculation, any_calculation, talk, any_text)
    for _ in range(w.rng.randint(2, max_exchanges)):
        exchange = w.rng.choice(makers)(w)
        messages += [user(exchange.question), assistant(exchange.answer)]
    if w.chance(0.3):
        document = followup_document(w)
        document.messages = messages + document.messages
        return document
    return Document(messages, "mixed", expect=list(exchange.expect))
