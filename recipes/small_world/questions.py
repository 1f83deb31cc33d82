"""Single questions about the tables: countries, animals, planets, words, plain facts."""

from __future__ import annotations

from dataclasses import dataclass

from .facts import (
    ANIMALS,
    COLOURS_OF,
    COUNTRIES,
    DAYS,
    MIXES,
    MONTH_DAYS,
    MONTHS,
    OPPOSITES,
    ORDINALS,
    PLAIN_FACTS,
    PLANETS,
    PLURALS,
    SYMBOLS,
    WITH_ARTICLE,
    Animal,
    Country,
)  # fmt: skip
from .phrases import Document, Pool, Writer, assistant, part, user


@dataclass(frozen=True)
class Exchange:
    """One question, its answer, and the words that a right answer must hold."""

    question: str
    answer: str
    expect: tuple[str, ...]


def named(country: Country) -> str:
    """The country's name as it stands in a sentence."""
    return f"the {country.name}" if country.name in WITH_ARTICLE else country.name


def upper_first(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


COUNTRY_NOUNS = {
    "capital": part(
        ("the capital of {c}", "the capital of {c}", "the capital of {c}", "the capital city of {c}", "{c}'s capital",
         "{c}'s capital city", "capital of {c}", "the capital of the country {c}", "the name of the capital of {c}",
         "the city that is the capital of {c}", "the capital in {c}", "the main city, the capital, of {c}"),
        ("the national capital of {c}", "the name of {c}'s capital", "the capital town of {c}", "the capital of {c}"),
    ),
    "continent": part(
        ("the continent of {c}", "the continent that {c} is in", "{c}'s continent", "the continent where {c} lies",
         "the continent {c} belongs to", "the name of the continent of {c}"),
        ("the continent on which we find {c}", "the continent of {c}", "the continent of the country {c}"),
    ),
    "language": part(
        ("the language of {c}", "the main language of {c}", "the language spoken in {c}", "{c}'s language",
         "the language of the people in {c}", "the official language of {c}", "the language in {c}"),
        ("the main language spoken in {c}", "the language that they use in {c}", "the official language in {c}"),
    ),
    "currency": part(
        ("the currency of {c}", "{c}'s currency", "the money used in {c}", "the currency in {c}", "the money of {c}",
         "the currency used in {c}", "the name of the currency of {c}"),
        ("the official currency of {c}", "the currency that {c} uses", "the currency people use in {c}"),
    ),
}  # fmt: skip
COUNTRY_DIRECT = {
    "capital": Pool(
        ("Which city is the capital of {c}?", "What city is the capital of {c}?", "{c} has which capital?",
         "The capital of {c} is", "{c}: capital?", "{c} capital", "Capital {c}?", "Which capital does {c} have?",
         "In {c}, which city is the capital?", "What is {c}'s capital called?", "How is the capital of {c} called?"),
        ("Name the city that is {c}'s capital.", "{c} - what is its capital city?", "For {c}, what is the capital?",
         "Which place is the capital of {c}?"),
    ),
    "continent": Pool(
        ("Which continent is {c} in?", "On which continent is {c}?", "What continent is {c} on?", "Where is {c}?",
         "In which continent is {c}?", "{c} is on which continent?", "Where in the world is {c}?",
         "Which continent does {c} belong to?", "{c}: continent?"),
        ("{c} is part of which continent?", "In what continent can I find {c}?", "Where on Earth is {c} located?"),
    ),
    "language": Pool(
        ("Which language do people speak in {c}?", "What language is spoken in {c}?", "What do people speak in {c}?",
         "Which language is spoken in {c}?", "What language do they speak in {c}?", "{c}: language?",
         "Which language does {c} have?", "What do they speak in {c}?"),
        ("In {c}, which language is spoken?", "What language would I hear in {c}?", "People in {c} speak what?"),
    ),
    "currency": Pool(
        ("Which currency does {c} use?", "What money do people use in {c}?", "What currency is used in {c}?",
         "How do people pay in {c}?", "Which money does {c} have?", "{c}: currency?", "With what money do I pay in {c}?"),
        ("In {c}, which currency is used?", "What currency do I need in {c}?", "Which currency do they have in {c}?"),
    ),
}  # fmt: skip
ATTRIBUTES = tuple(COUNTRY_NOUNS)


def country_value(country: Country, attribute: str) -> str:
    """The table's value."""
    return str(getattr(country, attribute))


def country_answer(country: Country, attribute: str) -> str:
    """The sentence that answers a question about a country."""
    name, value = named(country), country_value(country, attribute)
    if attribute == "continent":
        return f"{upper_first(name)} is in {value}."
    if attribute == "language":
        return f"The main language of {name} is {value}."
    if attribute == "currency":
        return f"The currency of {name} is the {value}."
    return f"The capital of {name} is {value}."


def ask_country(w: Writer, country: Country, attribute: str) -> Exchange:
    """A question about one attribute of one country."""
    if w.chance(0.3):
        question = w.noisy(w.pick(COUNTRY_DIRECT[attribute], c=named(country)))
    else:
        question = w.noun_question(w.pick(COUNTRY_NOUNS[attribute], c=named(country)))
    return Exchange(question, country_answer(country, attribute), (country_value(country, attribute),))


REVERSE_CAPITAL = Pool(
    ("Which country has the capital {v}?", "{v} is the capital of which country?", "What country has {v} as capital?",
     "{v} is the capital of", "Of which country is {v} the capital?", "Whose capital is {v}?",
     "Which country is {v} the capital of?", "The country with the capital {v}?", "In which country is {v}?",
     "Where is {v}?", "What is the country whose capital is {v}?"),
    ("{v} is which country's capital?", "Which land has {v} as its capital?", "Name the country whose capital is {v}."),
)  # fmt: skip
CHECK_CAPITAL = Pool(
    ("Is {v} the capital of {c}?", "Is the capital of {c} {v}?", "{v} is the capital of {c}, right?",
     "{v} is the capital of {c}, true or false?", "Am I right that {v} is the capital of {c}?",
     "Is it true that {v} is the capital of {c}?", "[Do|Did|Could|Can] you [think|believe|say|agree] [that |]{v} is the capital of {c}?", "I [believe|heard|say|guess|was told] [that |]{v} is the capital of {c}. [Right?|True?|Is it?|Is that right?|Correct?]", "[Could|Might|Can] {v} be the capital of {c}?",),
    ("Would you say {v} is the capital of {c}?", "I think {v} is the capital of {c}. Am I right?"),
)  # fmt: skip
ABOUT_COUNTRY = Pool(
    ("Tell me about {c}.", "What do you know about {c}?", "Describe {c}.", "Tell me everything about {c}.",
     "Give me some facts about {c}.", "I want to learn about {c}.", "Write about {c}.", "What can you say about {c}?",
     "Tell me something about {c}.", "Facts about {c}, please.", "Explain {c} to me.", "What is {c}?"),
    ("Could you share some facts about {c}?", "Teach me something about {c}.", "I'd love to hear about {c}."),
)  # fmt: skip
ONE_WORD = Pool(
    ("In one word: what is {np}?", "{np}? Just the name.", "One word only: {np}?", "Answer with one word: what is {np}?",
     "Only the name: {np}.", "Just the name, please: what is {np}?", "In one word, tell me {np}.", "[Give|Tell|Write] me [just|only] [the name|one word]: [what is |]{np}[?|.]", "What [is|was] {np}? [One word.|Use one word.|Only one word, please.|Only the name.|Just say the name.]",),
    ("Only give me the name: what is {np}?", "What is {np}? Answer in one word."),
)  # fmt: skip


def about_country(country: Country) -> str:
    """A short paragraph of all facts about a country."""
    name = named(country)
    return (
        f"{upper_first(name)} is a country in {country.continent}. Its capital is {country.capital}. "
        f"The main language is {country.language}. People pay with the {country.currency}."
    )


def other_country_question(w: Writer) -> Exchange:
    """Reverse look-ups, checks, paragraphs, one-word answers and unknown countries."""
    country, style = w.rng.choice(COUNTRIES), w.rng.random()
    if style < 0.3:
        question = w.noisy(w.pick(REVERSE_CAPITAL, v=country.capital))
        return Exchange(question, f"{country.capital} is the capital of {named(country)}.", (country.name,))
    if style < 0.5:
        shown = country if w.chance(0.5) else w.rng.choice(COUNTRIES)
        question = w.noisy(w.pick(CHECK_CAPITAL, v=shown.capital, c=named(country)))
        verdict = "Yes" if shown is country else "No"
        return Exchange(question, f"{verdict}, {country_answer(country, 'capital')[:1].lower()}"
                        f"{country_answer(country, 'capital')[1:]}", (verdict, country.capital))  # fmt: skip
    if style < 0.7:
        question = w.noisy(w.pick(ABOUT_COUNTRY, c=named(country)))
        return Exchange(
            question, about_country(country), (country.capital, country.continent, country.currency)
        )
    if style < 0.92:
        attribute = w.rng.choice(ATTRIBUTES)
        noun = w.pick(COUNTRY_NOUNS[attribute], c=named(country))
        value = country_value(country, attribute)
        return Exchange(w.noisy(w.pick(ONE_WORD, np=noun)), upper_first(value), (value,))
    invented = w.made_up_word()
    noun = w.pick(COUNTRY_NOUNS["capital"], c=invented)
    return Exchange(w.noun_question(noun), f"I do not know a country called {invented}.", ("do not know",))


def _with_a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


ANIMAL_ASKS = {
    "sound": Pool(
        ("What sound does {a} make?", "What does {a} say?", "Which sound does {a} make?", "How does {a} sound?",
         "What noise does {a} make?", "Tell me the sound of {a}.", "What is the sound of {a}?", "{a} says what?"),
        ("Which noise comes from {a}?", "What sound would {a} make?", "Can you tell me what sound {a} makes?"),
    ),
    "young": Pool(
        ("What is the young of {a} called?", "What is a baby of {a} called?", "How do you call the young of {a}?",
         "What do you call the baby of {a}?", "Name the young of {a}.", "What is the baby of {a}?",
         "Tell me the name of the baby of {a}.", "What is the name of the young of {a}?"),
        ("What name does the young of {a} have?", "The baby of {a} is called what?", "Do you know what the young of {a} is called?"),
    ),
    "legs": Pool(
        ("How many legs does {a} have?", "How many legs has {a}?", "Number of legs of {a}?", "Tell me how many legs {a} has.",
         "Count the legs of {a}.", "What is the number of legs of {a}?", "{a} has how many legs?"),
        ("On how many legs does {a} walk?", "Can you say how many legs {a} has?", "How many legs are there on {a}?"),
    ),
    "kind": Pool(
        ("What kind of animal is {a}?", "Is {a} a mammal or a bird?", "What type of animal is {a}?", "What is {a}?",
         "Which kind of animal is {a}?", "{a} is what kind of animal?", "Which group does {a} belong to?"),
        ("What sort of animal is {a}?", "To which animal group does {a} belong?"),
    ),
    "home": Pool(
        ("Where does {a} live?", "What is the home of {a}?", "Where is the home of {a}?", "Where can I find {a}?",
         "In which place does {a} live?", "Tell me where {a} lives."),
        ("Where would I meet {a}?", "Do you know where {a} lives?", "What place is home to {a}?"),
    ),
}  # fmt: skip


def animal_answer(animal: Animal, attribute: str) -> tuple[str, str]:
    """The sentence and the word it must hold."""
    a = _with_a(animal.name)
    if attribute == "sound":
        return f"{upper_first(a)} makes this sound: {animal.sound}.", animal.sound
    if attribute == "young":
        return f"The young of {a} is called {_with_a(animal.young)}.", animal.young
    if attribute == "legs":
        count = str(animal.legs) if animal.legs else "no"
        return f"{upper_first(a)} has {count} legs.", count
    if attribute == "kind":
        return f"{upper_first(a)} is {_with_a(animal.kind)}.", animal.kind
    return f"{upper_first(a)} lives in this place: {animal.home}.", animal.home


def animal_attributes(animal: Animal) -> list[str]:
    """The attributes that the table has for this animal."""
    return [name for name in ANIMAL_ASKS if name != "sound" or animal.sound]


def ask_animal(w: Writer, animal: Animal, attribute: str) -> Exchange:
    """A question about one attribute of one animal."""
    answer, value = animal_answer(animal, attribute)
    name = _with_a(animal.name) if w.chance(0.75) else f"the {animal.name}"
    return Exchange(w.noisy(upper_first(w.pick(ANIMAL_ASKS[attribute], a=name))), answer, (value,))


OPPOSITE_NOUNS = part(
    ("the opposite of {x}", "the opposite word of {x}", "the opposite of the word {x}", 'the opposite of "{x}"',
     "the contrary of {x}", "the word that is the opposite of {x}"),
    ("the exact opposite of {x}", "the opposite to {x}", "the opposite of {x}"),
)  # fmt: skip
PLURAL_NOUNS = part(
    ("the plural of {x}", 'the plural of "{x}"', "the plural form of {x}", "the plural of the word {x}"),
    ("the plural word for {x}", "the plural of {x}"),
)  # fmt: skip
SYMBOL_NOUNS = part(
    ("the chemical symbol of {x}", "the symbol of {x}", "the chemical symbol for {x}", "the symbol for {x}"),
    ("the symbol of the element {x}", "the chemical sign for {x}", "the chemical symbol of {x}"),
)  # fmt: skip
COLOUR_ASKS = Pool(
    ("What color is {x}?", "What colour is {x}?", "Which color is {x}?", "Which color does {x} have?",
     "What is the color of {x}?", "Tell me the color of {x}.", "The color of {x}?", "{x} has which colour?",
     "Do you know the color of {x}?", "What color does {x} have?", "Name the colour of {x}."),
    ("Can you tell me what color {x} is?", "What colour would {x} be?", "I was wondering what color {x} is."),
)  # fmt: skip
MIX_ASKS = Pool(
    ("What do you get when you mix {x} and {y}?", "What color is {x} and {y} mixed?", "Mix {x} and {y}.",
     "{x} and {y} give which color?", "Which color do {x} and {y} make?", "What do {x} and {y} make?"),
    ("If I mix {x} with {y}, what color is it?", "Blending {x} and {y} gives what color?"),
)  # fmt: skip
AFTER_ASKS = Pool(
    ("Which {unit} comes after {x}?", "What {unit} comes after {x}?", "What comes after {x}?", "What is after {x}?",
     "What {unit} is after {x}?", "Which {unit} follows {x}?", "Tell me the {unit} after {x}.", "The {unit} after {x}?", "[Right|Just|Directly|] after {x}[:|,] which {unit}[ is it| comes|]?", "[Name|Give me|Show me] the {unit} [right |just |]after {x}.", "[Which|What] [was|is] the [next |]{unit} after {x} called?",),
    ("After {x}, which {unit} is next?", "What is the next {unit} after {x}?", "Say which {unit} comes after {x}."),
)  # fmt: skip
BEFORE_ASKS = Pool(
    ("Which {unit} comes before {x}?", "What {unit} comes before {x}?", "What comes before {x}?", "What is before {x}?",
     "What {unit} is before {x}?", "Tell me the {unit} before {x}.", "The {unit} before {x}?", "[Right|Just|Directly|] before {x}[:|,] which {unit}[ is it| comes|]?", "[Name|Say|Give me|Show me] the {unit} [right |just |]before {x}.", "[Which|What] [was|is] the {unit} before {x}?",),
    ("Before {x}, which {unit} is there?", "What is the {unit} right before {x}?", "Say which {unit} comes before {x}."),
)  # fmt: skip
NTH_NOUNS = part(
    ("the {n} {unit} of the {whole}", "the {n} {unit} in the {whole}", "the {unit} number {n} of the {whole}"),
    ("the {whole}'s {n} {unit}", "the {n} {unit} of the {whole}"),
)  # fmt: skip
MONTH_LENGTH = Pool(
    ("How many days does {x} have?", "How many days are in {x}?", "How long is {x}?", "How many days has {x}?",
     "What is the number of days in {x}?", "{x} has how many days?"),
    ("Can you say how many days there are in {x}?", "The month of {x} has how many days?"),
)  # fmt: skip
NTH_PLANET = part(
    ("the {n} planet from the sun", "the {n} planet", "planet number {n} from the sun"),
    ("the {n} planet counted from the sun", "the {n} planet of the solar system"),
)  # fmt: skip


def sequence_question(w: Writer) -> Exchange:
    """Days, months and planets: after, before, n-th."""
    unit, row, whole = w.rng.choice((("day", DAYS, "week"), ("month", MONTHS, "year")))
    i, style = w.rng.randrange(len(row)), w.rng.random()
    if style < 0.35:
        nxt = row[(i + 1) % len(row)]
        return Exchange(
            w.noisy(w.pick(AFTER_ASKS, unit=unit, x=row[i])), f"After {row[i]} comes {nxt}.", (nxt,)
        )
    if style < 0.55:
        prev = row[i - 1]
        return Exchange(
            w.noisy(w.pick(BEFORE_ASKS, unit=unit, x=row[i])), f"Before {row[i]} comes {prev}.", (prev,)
        )
    if style < 0.7:
        noun = w.pick(NTH_NOUNS, n=ORDINALS[i], unit=unit, whole=whole)
        return Exchange(
            w.noun_question(noun), f"The {ORDINALS[i]} {unit} of the {whole} is {row[i]}.", (row[i],)
        )
    if style < 0.85:
        m = w.rng.randrange(12)
        answer = f"{MONTHS[m]} has {MONTH_DAYS[m]} days."
        return Exchange(w.noisy(w.pick(MONTH_LENGTH, x=MONTHS[m])), answer, (str(MONTH_DAYS[m]),))
    p = w.rng.randrange(8)
    answer = f"The {ORDINALS[p]} planet from the sun is {PLANETS[p]}."
    return Exchange(w.noun_question(w.pick(NTH_PLANET, n=ORDINALS[p])), answer, (PLANETS[p],))


def word_question(w: Writer) -> Exchange:
    """Opposites, plurals, chemical symbols, colours."""
    style = w.rng.random()
    if style < 0.35:
        pair = w.rng.choice(OPPOSITES)
        x, y = pair if w.chance(0.5) else reversed(pair)
        return Exchange(w.noun_question(w.pick(OPPOSITE_NOUNS, x=x)), f"The opposite of {x} is {y}.", (y,))
    if style < 0.5:
        x, y = w.rng.choice(tuple(PLURALS.items()))
        return Exchange(w.noun_question(w.pick(PLURAL_NOUNS, x=x)), f"The plural of {x} is {y}.", (y,))
    if style < 0.65:
        x, y = w.rng.choice(tuple(SYMBOLS.items()))
        return Exchange(
            w.noun_question(w.pick(SYMBOL_NOUNS, x=x)), f"The chemical symbol of {x} is {y}.", (y,)
        )
    if style < 0.9:
        x, y = w.rng.choice(tuple(COLOURS_OF.items()))
        return Exchange(w.noisy(upper_first(w.pick(COLOUR_ASKS, x=x))), f"{upper_first(x)} is {y}.", (y,))
    (a, b), y = w.rng.choice(tuple(MIXES.items()))
    if w.chance(0.5):
        a, b = b, a
    return Exchange(
        w.noisy(upper_first(w.pick(MIX_ASKS, x=a, y=b))), f"{upper_first(a)} and {b} make {y}.", (y,)
    )


def plain_question(w: Writer) -> Exchange:
    """One of the plain facts."""
    noun, (answer, value) = w.rng.choice(tuple(PLAIN_FACTS.items()))
    return Exchange(w.noun_question(noun), answer, (value,))


def capital_question(w: Writer) -> Exchange:
    """The main job: the capital of a country."""
    return ask_country(w, w.rng.choice(COUNTRIES), "capital")


def any_question(w: Writer) -> Exchange:
    """One question from all the tables."""
    style = w.rng.random()
    if style < 0.28:
        return capital_question(w)
    if style < 0.46:
        return ask_country(w, w.rng.choice(COUNTRIES), w.rng.choice(ATTRIBUTES[1:]))
    if style < 0.58:
        return other_country_question(w)
    if style < 0.72:
        animal = w.rng.choice(ANIMALS)
        return ask_animal(w, animal, w.rng.choice(animal_attributes(animal)))
    if style < 0.82:
        return sequence_question(w)
    if style < 0.92:
        return word_question(w)
    return plain_question(w)


def as_document(exchange: Exchange, family: str) -> Document:
    """A conversation of one exchange."""
    return Document(
        [user(exchange.question), assistant(exchange.answer)], family, expect=list(exchange.expect)
    )


def capital_document(w: Writer) -> Document:
    """One capital question."""
    return as_document(capital_question(w), "capitals")


def fact_document(w: Writer) -> Document:
    """One question about anything else in the tables."""
    exchange = any_question(w)
    return as_document(exchange, "facts")


FRAMES_JSON = part(
    ("What is {np}?", "What's {np}?", "Tell me {np}.", "Give me {np}.", "{np}?", "Name {np}.", "Can you tell me {np}?",
     "Do you know {np}?", "I want to know {np}.", "What is {np}"),
    ("I was wondering what {np} is.", "Would you happen to know {np}?", "I keep forgetting {np}."),
)  # fmt: skip
