"""Lists, counting, spelling, repeating, translating, number words."""

from __future__ import annotations

from .facts import DAYS, LISTS, MONTHS, PLANETS, SEASONS, TRANSLATIONS
from .phrases import Document, Pool, Writer, assistant, user
from .questions import Exchange

LIST_ASKS = Pool(
    ("List {n} {x}.", "Name {n} {x}.", "Give me {n} {x}.", "Tell me {n} {x}.", "Can you name {n} {x}?", "Write {n} {x}.",
     "I need {n} {x}.", "Give me a list of {n} {x}.", "Please list {n} {x}.", "Can you list {n} {x}?", "[Find|Say|Choose|Show|Pick|Write down] {n} {x}[.|!| for me.]", "[Can|Could|Would] you [think of|find|say|show me|tell me] {n} {x}?", "[Make|Write] [up |]a list [of|with] {n} {x}.", "[Think|Come up] now [of|with] {n} {x}.",),
    ("Could you give me the names of {n} {x}?", "Think of {n} {x}.", "Come up with {n} {x}."),
)  # fmt: skip
ALL_ASKS = Pool(
    ("List the {x}.", "Name all {x}.", "What are the {x}?", "Tell me all {x}.", "Give me the {x}.", "Write down the {x}.",
     "Which {x} are there?", "List all the {x}.", "Can you list the {x}?"),
    ("Could you enumerate the {x}?", "I need a list of all the {x}."),
)  # fmt: skip
COUNT_ASKS = Pool(
    ("Count from {a} to {b}.", "Count to {b} from {a}.", "Please count from {a} to {b}.", "Can you count from {a} to {b}?",
     "List the numbers from {a} to {b}.", "Write the numbers from {a} to {b}.", "Numbers from {a} to {b}", "[Begin|Start] [at|with] {a} and [go|count up|continue] to {b}.", "[Would|Will|Could] you [please |]count from {a} to {b}?", "From {a} [up |]to {b}, [count|all numbers|please count].",),
    ("Would you count from {a} up to {b}?", "Start at {a} and count to {b}."),
)  # fmt: skip
COUNT_UP_ASKS = Pool(
    ("Count to {b}.", "Count up to {b}.", "Can you count to {b}?", "Please count to {b}.", "count to {b}"),
    ("Would you count to {b}?",),
)  # fmt: skip
SPELL_ASKS = Pool(
    ("Spell {x}.", "Spell the word {x}.", "How do you spell {x}?", "How is {x} spelled?", 'Spell "{x}".',
     "Can you spell {x}?", "Please spell {x}.", "What are the letters of {x}?", "[Say|Show|Give me|Tell me] {x} [by letters|in letters|with its letters|letter for letter].", "[Could|Would|Will] you spell {x}[ for me|]?", "[Write|Type] [out |]the letters of {x}.",),
    ("Could you spell out {x}?", "Write {x} letter by letter."),
)  # fmt: skip
REPEAT_ASKS = Pool(
    ("Repeat: {x}", "Say: {x}", "Repeat after me: {x}", "Please repeat: {x}", 'Say "{x}"', 'Repeat "{x}"', "Echo: {x}",
     "Copy this: {x}", "Write this again: {x}", "Print: {x}", "[Can|Could|Would|Will] you [say|copy|echo|write] [this|that][: |, please: ]{x}", "[Please|Now] [copy|echo|write] [this|that]: {x}",),
    ("Can you repeat this: {x}", "Please say this: {x}"),
)  # fmt: skip
TRANSLATE_ASKS = Pool(
    ("What is {x} in {l}?", "How do you say {x} in {l}?", 'What is "{x}" in {l}?', "Translate {x} to {l}.",
     "Translate {x} into {l}.", 'How do I say "{x}" in {l}?', "{x} in {l}?", "Say {x} in {l}.",
     "What does {x} mean in {l}?", "The {l} word for {x}?", "What is the {l} word for {x}?"),
    ("How would you say {x} in {l}?", "Which word do they use for {x} in {l}?", 'Please put "{x}" into {l}.'),
)  # fmt: skip
IN_WORDS_ASKS = Pool(
    ("Write {x} in words.", "How do you write {x} in words?", "{x} in words?", "Spell the number {x}.",
     "What is {x} in words?", "Write the number {x} as a word."),
    ("Could you write {x} out in words?", "Put {x} into words."),
)  # fmt: skip
ALPHABET_ASKS = Pool(
    ("Say the alphabet.", "Write the alphabet.", "What is the alphabet?", "List the letters of the alphabet.", "alphabet"),
    ("Recite the alphabet.",),
)  # fmt: skip
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SPELLABLE = (
    "cat dog cow horse house water bread apple banana tree green blue red yellow happy friend school river moon star "
    "sun fish bird cloud music paper stone flower garden summer winter table chair window door book story milk tea "
    "coffee sugar salt lemon orange grape train boat plane street city country world night day morning evening"
).split()
ALL_OF = {
    "days of the week": DAYS, "months of the year": MONTHS, "planets": PLANETS, "planets of the solar system": PLANETS,
    "seasons": SEASONS, "four seasons": SEASONS, "days": DAYS, "months": MONTHS,
}  # fmt: skip


def number_words(n: int) -> str:
    """0..99 in English words."""
    if n < 20:
        return SMALL[n]
    return TENS[n // 10] + (f"-{SMALL[n % 10]}" if n % 10 else "")


def _joined(items: list[str] | tuple[str, ...]) -> str:
    return ", ".join(items[:-1]) + f" and {items[-1]}" if len(items) > 1 else items[0]


def _random_text(w: Writer) -> str:
    pool = SPELLABLE + ["the", "a", "is", "and", "my", "I", "we", "very", "hello"]
    words = [w.rng.choice(pool) if w.chance(0.7) else w.made_up_word() for _ in range(w.rng.randint(1, 8))]
    return " ".join(words)


def _listing(w: Writer) -> Exchange:
    style = w.rng.random()
    if style < 0.4:
        kind, items = w.rng.choice(tuple(LISTS.items()))
        count = w.rng.randint(2, 6)
        number = str(count) if w.chance(0.4) else SMALL[count]
        chosen = list(items[:count])
        if w.held or w.chance(0.6):
            return Exchange(
                w.noisy(w.pick(LIST_ASKS, n=number, x=kind)), f"{_joined(chosen)}.", tuple(chosen)
            )
        lines = "\n".join(f"{i}. {item}" for i, item in enumerate(chosen, 1))
        ask = w.pick(LIST_ASKS, n=number, x=kind).rstrip(".?") + " as a numbered list."
        return Exchange(ask, lines, tuple(chosen))
    if style < 0.62:
        kind, items = w.rng.choice(tuple(ALL_OF.items()))
        return Exchange(w.noisy(w.pick(ALL_ASKS, x=kind)), f"{_joined(items)}.", tuple(items))
    if style < 0.68:
        letters = " ".join("abcdefghijklmnopqrstuvwxyz")
        return Exchange(w.noisy(w.pick(ALPHABET_ASKS)), letters, (letters,))
    if w.chance(0.6):
        end = w.rng.choice((3, 5, 8, 10, 10, 12, 15, 20, 20, 25, 30, 50))
        numbers = ", ".join(str(n) for n in range(1, end + 1))
        return Exchange(w.noisy(w.pick(COUNT_UP_ASKS, b=end)), numbers, (numbers,))
    start = w.rng.randint(1, 60)
    end = start + w.rng.randint(2, 15)
    numbers = ", ".join(str(n) for n in range(start, end + 1))
    return Exchange(w.noisy(w.pick(COUNT_ASKS, a=start, b=end)), numbers, (numbers,))


def any_text(w: Writer) -> Exchange:
    """One exchange of this module."""
    style = w.rng.random()
    if style < 0.4:
        return _listing(w)
    if style < 0.55:
        text = _random_text(w)
        return Exchange(w.pick(REPEAT_ASKS, x=text), text, (text,))
    if style < 0.65:
        word = w.rng.choice(SPELLABLE)
        return Exchange(w.noisy(w.pick(SPELL_ASKS, x=word)), "-".join(word), ("-".join(word),))
    if style < 0.9:
        word = w.rng.choice(tuple(TRANSLATIONS))
        language, value = w.rng.choice(tuple(TRANSLATIONS[word].items()))
        question = w.noisy(w.pick(TRANSLATE_ASKS, x=word, l=language))
        return Exchange(question, f'"{word}" in {language} is "{value}".', (value,))
    n = w.rng.randint(0, 99)
    return Exchange(w.noisy(w.pick(IN_WORDS_ASKS, x=n)), number_words(n), (number_words(n),))


def text_document(w: Writer) -> Document:
    """One exchange of this module."""
    exchange = any_text(w)
    return Document(
        [user(exchange.question), assistant(exchange.answer)], "texts", expect=list(exchange.expect)
    )
