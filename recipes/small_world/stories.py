"""Short, middle and long stories built from scenes; the hero, the name and the place may be asked for."""

from __future__ import annotations

from .facts import FIRST_NAMES
from .phrases import Document, Pool, Writer, assistant, user

HEROES = "fox cat dog rabbit bear mouse owl robot dragon knight girl boy wizard duck horse princess pirate frog".split()
PLACES = (
    "forest|village|castle|city|mountain|garden|island|valley|desert|farm|lake|cave|harbor|meadow"
).split("|")
TRAITS = "brave clever small kind curious quiet young old cheerful lazy friendly shy".split()
TREASURES = (
    "golden key|silver bell|red kite|magic lamp|blue stone|warm scarf|little drum|old map|glass star".split(
        "|"
    )
)
WEATHER = "The sun was warm|Rain fell on the roofs|The wind was cold|Snow lay on the ground|Mist hung in the air".split(
    "|"
)

ASKS = Pool(
    ("Tell me a story.", "Tell a story.", "Tell me a short story.", "Can you tell me a story?", "Write a story.",
     "I want to hear a story.", "A story, please.", "Please tell me a story.", "Write a short story.", "Story time!",
     "Do you know a story?", "Make up a story.", "Can you write a short story?", "Tell me something nice."),
    ("Could you tell me a little story?", "I would love to hear a story.", "Entertain me with a story."),
)  # fmt: skip
ABOUT_ASKS = Pool(
    ("Tell me a story about {h}.", "Write a story about {h}.", "Tell a story about {h}.", "A story about {h}, please.",
     "Can you tell me a story about {h}?", "I want a story about {h}.", "Write a short story about {h}.",
     "Make up a story about {h}.", "Tell me a short story about {h}.", "Please tell a story about {h}.", "story about {h}"),
    ("Could you tell me a little story about {h}?", "I would love to hear a story about {h}.",
     "Do you have a story with {h}?"),
)  # fmt: skip
LONG_ASKS = Pool(
    ("Tell me a long story about {h}.", "Write a long story about {h}.", "A long story about {h}, please.",
     "Tell a very long story about {h}.", "Can you tell me a long story about {h}?", "I want a long story about {h}.",
     "Write a longer story about {h}.", "Make up a long story about {h}."),
    ("Could you tell me a really long story about {h}?", "I would love to hear a long story about {h}."),
)  # fmt: skip
LONG_PLAIN = Pool(
    ("Tell me a long story.", "Write a long story.", "A long story, please.", "Can you tell me a long story?",
     "I want to hear a long story.", "Tell me a very long story.", "Please write a long story."),
    ("Could you tell me a really long story?",),
)  # fmt: skip
HERO_ASKS = Pool(
    ("Who was the hero?", "Who is the story about?", "What was the name of the hero?", "What was the hero called?",
     "Who was the story about?", "What is the hero's name?", "What was the name?"),
    ("Remind me, who was the hero of the story?", "How was the hero called?"),
)  # fmt: skip

SCENES = (
    "{W}, and {n} went for a walk near the {p2}.",
    "On the way, {n} met {f}, who looked very sad.",
    '"What is wrong?" asked {n}.',
    '"I have lost my {t}," said {f}, "and I cannot find it alone."',
    '"Do not worry," said {n}. "I will help you."',
    "They looked under every stone and behind every tree, but the {t} was not there.",
    "Then {n} had an idea and climbed up to the top of the hill.",
    "From there {n} saw something that was shining near the {p2}.",
    "It was the {t}!",
    "{f} jumped for joy and thanked {n} many times.",
)
EXTRA_SCENES = (
    "Soon it became dark, and the two friends made a small fire.",
    "They shared some bread and told each other old tales.",
    "In the night they heard a strange noise, but it was only an owl.",
    "In the morning the friends came to a wide river without a bridge.",
    "{n} found an old boat, and together they rowed to the other side.",
    "A very old man sat there and gave them good advice.",
    '"Go where the birds sing," he said, "and you will find what you are looking for."',
    "So they followed the song of the birds for a long time.",
)
ENDINGS = (
    "From that day on, {n} and {f} were best friends.",
    "In the evening they all had a big party, and everybody was happy.",
    "Then {n} went home and slept very well.",
)


def _with_a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def write_story(w: Writer, hero: str, name: str, place: str, length: str) -> str:
    """A story of about 50 (short), 150 (middle) or 300 (long) tokens."""
    rng = w.rng
    friend = rng.choice([other for other in FIRST_NAMES if other != name])
    words = {
        "n": name, "f": friend, "t": rng.choice(TREASURES), "p2": rng.choice([p for p in PLACES if p != place]),
        "W": "One day: " + rng.choice(WEATHER)[0].lower(),
    }  # fmt: skip
    weather = rng.choice(WEATHER)
    words["W"] = f"One day {weather[0].lower()}{weather[1:]}"
    opening = f"Once upon a time there was {_with_a(rng.choice(TRAITS))} {hero} called {name}, who lived near the {place}."
    if length == "short":
        scenes: tuple[str, ...] = (SCENES[0], SCENES[1], "{n} helped {f} to find a {t}.", ENDINGS[0])
    elif length == "middle":
        scenes = (*SCENES, ENDINGS[0])
    else:
        scenes = (*SCENES[:6], *EXTRA_SCENES, *SCENES[6:], *ENDINGS)
    text = " ".join((opening, *scenes)).format(**words)
    if length == "long":
        return text.replace(" Soon it became", "\n\nSoon it became").replace(" Then {n} had".format(**words),
                                                                             "\n\nThen {n} had".format(**words))  # fmt: skip
    return text


def story_document(w: Writer) -> Document:
    """A story, sometimes with a question about its hero."""
    rng = w.rng
    hero, place = rng.choice(HEROES), rng.choice(PLACES)
    name = rng.choice(FIRST_NAMES) if w.chance(0.8) else w.made_up_word()
    wish = _with_a(hero) if w.chance(0.8) else f"the {hero}"
    style, length = rng.random(), "middle"
    if style < 0.2:
        ask = w.pick(ASKS)
        length = rng.choice(("short", "middle")) if "short" not in ask else "short"
    elif style < 0.75:
        named = w.chance(0.4)
        extra = (f" called {name}" if named else "") + (f" in the {place}" if w.chance(0.25) else "")
        ask = w.pick(ABOUT_ASKS, h=wish + extra)
        length = "short" if "short" in ask else "middle"
        if " in the " not in extra:
            place = rng.choice(PLACES)
    else:
        length = "long"
        ask = w.pick(LONG_PLAIN) if w.chance(0.25) else w.pick(LONG_ASKS, h=wish)
    story = write_story(w, hero, name, place, length)
    messages = [user(w.noisy(ask)), assistant(story)]
    expect = ["Once upon a time"] + ([hero] if "about" in ask else [])
    if w.chance(0.25) and not w.held:
        messages += [user(w.noisy(w.pick(HERO_ASKS))), assistant(f"The hero was {name} the {hero}.")]
        expect = [name]
    return Document(messages, "stories", expect=expect)
