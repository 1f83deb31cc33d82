"""Answers that are one JSON value."""

from __future__ import annotations

import json
from typing import Any

from .arithmetic import addends
from .facts import ANIMALS, COUNTRIES, FIRST_NAMES, LISTS, OPPOSITES, Country
from .phrases import Document, Pool, Writer, assistant, part, user
from .questions import COUNTRY_NOUNS, FRAMES_JSON, country_value, named

AS_JSON = Pool(
    (" Answer in JSON.", " Answer as JSON.", " Reply in JSON.", " Reply with JSON.", " In JSON, please.", " Give me JSON.",
     " Use JSON.", " Return JSON.", " as JSON", " in JSON", " JSON only.", " Answer with JSON only.", " Respond in JSON.",
     " Output JSON.", " Write the answer as JSON.", " Return a JSON object.", " Answer with a JSON object.",
     " Format: JSON.", " Only JSON, no other text.", " I need JSON.", " Please answer in JSON format." " [Please|Kindly|You must|You should|Now] [reply|answer|respond|write] [in|with|as] JSON[ only|].", " [The|My|This] answer [must|should|needs to] be [in |]JSON.", " [Turn|Write|Give|Make] it [into|in|as] JSON[.|, please.]",),
    (" Please reply using JSON.", " Your answer has to be JSON.", " Respond with a JSON object only.", " Put it into JSON."),
)  # fmt: skip
AGAIN_JSON = Pool(
    ("Now as JSON.", "As JSON please.", "Give me that as JSON.", "In JSON?", "Say that in JSON.", "Now in JSON.",
     "Can you write that as JSON?", "Put that in JSON.", "And as JSON?", "Return that as JSON."),
    ("Please turn that into JSON.", "Could I have this as JSON?"),
)  # fmt: skip
WITH_KEYS = Pool(
    (" Answer in JSON with the keys {k}.", " Return JSON with keys {k}.", " Use the JSON keys {k}.",
     " Reply with a JSON object with {k}.", " JSON with {k}.", " Give me a JSON object with the fields {k}.",
     " Answer as JSON with the fields {k}.", " Output JSON with the keys {k} only."),
    (" Please reply as JSON having the keys {k}.", " I need a JSON object that has {k}."),
)  # fmt: skip
COUNTRY_TOPICS = part(
    ("Tell me about {c}.", "Describe {c}.", "{c}.", "Information about {c}.", "Give me facts about {c}.", "Facts about {c}:",
     "What about {c}?", "I want to know about {c}.", "Country: {c}.", "[Can|Would] you [describe|explain|show] {c}?", "[Some|A few] [facts|words] [about|on] {c}, please.",),
    ("Could you describe {c}?", "Something about {c}, please."),
)  # fmt: skip
COUNTRY_JSON = Pool(
    ("Give me {c} as a JSON object.", "Return a JSON object for {c}.", "Describe {c} in JSON.", "{c} as JSON",
     "Write JSON about {c}.", "JSON for {c}", "Make a JSON object about {c}.", "Give me a JSON about {c}.", "[Please|Kindly|Now] [show|write|give me|put] {c} as [JSON|a JSON object].", "I [want|would like|ask for] [a |some |]JSON [for|of|on] {c}.",),
    ("Please describe {c} as a JSON object.", "I need some JSON about {c}."),
)  # fmt: skip
SUM_TOPICS = part(
    ("What is {a} + {b}?", "{a} + {b}", "Add {a} and {b}.", "Calculate {a} + {b}.", "How much is {a} plus {b}?",
     "What is {a} plus {b}?", "Compute {a} + {b}.", "[Which|What] [result|sum|value] is {a} + {b}?", "[Can you|Now] add [up |]{a} and {b}[.|?]", "Please [sum|add] {a} and {b}.",),
    ("What number is {a} + {b}?", "Please add up {a} and {b}."),
)  # fmt: skip
ANIMAL_TOPICS = part(
    ("Tell me about the {x}.", "Describe the {x}.", "The {x}.", "Animal: {x}.", "Give me facts about the {x}.", "[Can|Would] you [describe|explain] the {x}?", "[Some|A few] [facts|words] [about|on] the {x}, please.", "What about the {x}?",),
    ("Could you describe the {x}?", "Something about the {x}, please."),
)  # fmt: skip
LIST_TOPICS = part(
    ("List {n} {x}.", "Name {n} {x}.", "Give me {n} {x}.", "Tell me {n} {x}.", "I need {n} {x}.", "[Find|Say|Choose|Show|Write down] {n} {x}.", "Can you [name|list|think of] {n} {x}?",),
    ("Think of {n} {x}.", "Could you name {n} {x}?"),
)  # fmt: skip
AS_ARRAY = Pool(
    (" Answer as a JSON array.", " As a JSON list.", " Return a JSON array.", " Use a JSON list.", " JSON array only.",
     " Reply with a JSON array."),
    (" Please reply with a JSON list.", " I want a JSON array."),
)  # fmt: skip
PERSON_TEXTS = part(
    ("{n} is {a} years old and lives in {c}.", "My friend {n} from {c} is {a} years old.", "{n} ({a}) lives in {c}.",
     "I am {n}, I am {a} and I live in {c}.", "This is {n}, aged {a}, from {c}.", "In {c} lives {n}, who is {a}.", "{n} [became|was|is now|just became|will be] {a} [and|, who] [lives in|went to|left for|stays in|came from] {c}.", "[See|Here is|That is|I met|I know|You know] {n}, {a} years [old|of age], [from|in|at home in|staying in] {c}.", "{n} [of|from|in] {c} [is|turns|has just become] {a}.", "[At|With|Aged] {a}[ years|], {n} [moved|came|flew|travelled] to {c}.",),
    ("{n} turned {a} and moved to {c}.", "Meet {n}, {a} years old, living in {c}."),
)  # fmt: skip
EXTRACT_ASKS = Pool(
    ("Extract the name, age and city as JSON: {t}", "Extract name, age and city: {t} Answer in JSON.",
     "Make JSON of this: {t}", "Turn this into JSON: {t}", "Put this into JSON with name, age and city: {t}",
     "{t} Extract name, age and city as JSON.", "Read this and give me JSON: {t}", "{t} Give me that as JSON.", "{t} [Please|Now|Kindly|] [put|turn|change|bring] [that|this|it|the text] into JSON.", "[Please|Kindly|Now|] [take|get|read|find|extract] [the |]name, age and city [from|in|out of] this [text|sentence|line|] [as|in] JSON: {t}", "{t} [Write|Return|I want|I need] [this|that|the text|it] as JSON[.|, please.]",),
    ("Please extract name, age and city from this text as JSON: {t}", "{t} Please turn that text into JSON."),
)  # fmt: skip
OPPOSITE_TOPICS = part(
    ("What is the opposite of {x}?", "Opposite of {x}?", "Tell me the opposite of {x}.", "The opposite of {x}.", "I [wonder|want to know|ask] what the opposite of {x} is.", "What would be the opposite of {x}?",),
    ("I was wondering what the opposite of {x} is.",),
)  # fmt: skip


def dumps(value: Any) -> str:
    """JSON text in the one style that the model learns."""
    return json.dumps(value, ensure_ascii=False)


def country_object(country: Country, attributes: tuple[str, ...]) -> dict[str, str]:
    """{"country": ..., attribute: value, ...}."""
    return {"country": country.name, **{name: country_value(country, name) for name in attributes}}


def _keys_text(w: Writer, keys: list[str]) -> str:
    style = w.rng.random()
    if style < 0.3:
        keys = [f'"{key}"' for key in keys]
    if style > 0.8:
        return ", ".join(keys)
    return ", ".join(keys[:-1]) + f" and {keys[-1]}" if len(keys) > 1 else keys[0]


def _country(w: Writer) -> tuple[str, Any]:
    country, style = w.rng.choice(COUNTRIES), w.rng.random()
    if style < 0.35:
        attribute = "capital" if w.chance(0.6) else w.rng.choice(("continent", "language", "currency"))
        noun = w.pick(COUNTRY_NOUNS[attribute], c=named(country))
        return w.pick(FRAMES_JSON, np=noun) + w.pick(AS_JSON), country_object(country, (attribute,))
    if style < 0.7:
        names = w.rng.sample(("capital", "continent", "language", "currency"), w.rng.randint(1, 3))
        text = w.pick(COUNTRY_TOPICS, c=named(country)) + w.pick(
            WITH_KEYS, k=_keys_text(w, ["country", *names])
        )
        return text, country_object(country, tuple(names))
    everything = country_object(country, ("capital", "continent", "language", "currency"))
    if w.chance(0.5):
        return w.pick(COUNTRY_TOPICS, c=named(country)) + w.pick(AS_JSON), everything
    return w.pick(COUNTRY_JSON, c=named(country)), everything


def _other(w: Writer) -> tuple[str, Any]:
    style = w.rng.random()
    if style < 0.3:
        a, b = addends(w)
        return w.pick(SUM_TOPICS, a=a, b=b) + w.pick(AS_JSON), {"expression": f"{a} + {b}", "result": a + b}
    if style < 0.45:
        animal = w.rng.choice(ANIMALS)
        value = {"animal": animal.name, "kind": animal.kind, "legs": animal.legs, "young": animal.young}
        return w.pick(ANIMAL_TOPICS, x=animal.name) + w.pick(AS_JSON), value
    if style < 0.65:
        kind, items = w.rng.choice(tuple(LISTS.items()))
        count = w.rng.randint(2, 6)
        return w.pick(LIST_TOPICS, n=count, x=kind) + w.pick(AS_ARRAY), list(items[:count])
    if style < 0.75:
        pair = w.rng.choice(OPPOSITES)
        return w.pick(OPPOSITE_TOPICS, x=pair[0]) + w.pick(AS_JSON), {"word": pair[0], "opposite": pair[1]}
    name = w.rng.choice(FIRST_NAMES) if w.chance(0.6) else w.made_up_word()
    person = {"name": name, "age": w.rng.randint(1, 99), "city": w.rng.choice(COUNTRIES).capital}
    text = w.pick(PERSON_TEXTS, n=name, a=person["age"], c=person["city"])
    return w.pick(EXTRACT_ASKS, t=text), person


def json_document(w: Writer) -> Document:
    """One question whose answer is JSON."""
    text, value = _country(w) if w.chance(0.55) else _other(w)
    if w.chance(0.15) and not w.held:
        text = w.noisy(text)
    messages = [user(text), assistant(dumps(value))]
    if w.chance(0.1):
        bare = next((text.removesuffix(s) for s in (*AS_JSON.train, *AS_JSON.held) if text.endswith(s)), None)
        if bare is not None:
            system = w.rng.choice(
                ("Answer only in JSON.", "Always answer in JSON.", "You are an API. Reply with JSON.")
            )
            messages = [{"role": "system", "content": system}, user(bare), messages[1]]
    return Document(messages, "json", expect_json=value)
