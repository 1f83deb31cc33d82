"""Arithmetic on small numbers. One pair of two-digit addends in ten is left out of the plain sums."""

from __future__ import annotations

from .phrases import Document, Pool, Writer, assistant, user
from .questions import Exchange

SUM_ASKS = Pool(
    ("What is {a} + {b}?", "What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "{a} + {b} =", "{a}+{b}",
     "{a}+{b}=?", "{a} plus {b}", "{a} plus {b}?", "Add {a} and {b}.", "Add {b} to {a}.", "Sum of {a} and {b}?",
     "What is the sum of {a} and {b}?", "How much is {a} + {b}?", "How much is {a} plus {b}?", "Calculate {a} + {b}.",
     "Compute {a} + {b}.", "Can you add {a} and {b}?", "What's {a} + {b}?", "What's {a} plus {b}?", "whats {a}+{b}",
     "Tell me {a} + {b}.", "What do you get if you add {a} and {b}?", "What does {a} + {b} equal?", "Solve {a} + {b}.",
     "{a} and {b} together?", "Work out {a} + {b}.", "Please calculate {a} plus {b}.", "{a} + {b} is", "{a} + {b} = ?",
     "I need {a} + {b}.", "Do you know {a} + {b}?", "What will {a} + {b} be?", "Give me the sum of {a} and {b}."),
    ("Could you work out {a} plus {b} for me?", "What do {a} and {b} add up to?", "Please add up {a} and {b}.",
     "What number is {a} + {b}?", "If I add {b} to {a}, what do I get?", "Help me with {a} + {b}.",
     "Quick: {a} plus {b}?", "I was wondering what {a} + {b} is.", "My homework says {a} + {b}. What is it?"),
)  # fmt: skip
MINUS_ASKS = Pool(
    ("What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =", "{a} minus {b}?",
     "Subtract {b} from {a}.", "Take {b} away from {a}.", "How much is {a} - {b}?", "How much is {a} minus {b}?",
     "Calculate {a} - {b}.", "Compute {a} - {b}.", "What's {a} - {b}?", "What's {a} minus {b}?", "Tell me {a} - {b}.",
     "What is the difference of {a} and {b}?", "Solve {a} - {b}.", "Work out {a} minus {b}."),
    ("Could you work out {a} minus {b} for me?", "What number is {a} - {b}?", "Help me with {a} - {b}.",
     "If I take {b} from {a}, what is left?"),
)  # fmt: skip
TIMES_ASKS = Pool(
    ("What is {a} times {b}?", "What is {a} * {b}?", "{a} * {b}", "{a} x {b}", "{a} times {b}?", "{a}*{b}=",
     "Multiply {a} by {b}.", "Multiply {a} and {b}.", "How much is {a} times {b}?", "Calculate {a} * {b}.",
     "Compute {a} * {b}.", "What's {a} times {b}?", "Tell me {a} times {b}.", "What is the product of {a} and {b}?",
     "What is {a} multiplied by {b}?", "How much is {a} x {b}?"),
    ("Could you work out {a} times {b} for me?", "What number is {a} * {b}?", "Help me with {a} times {b}."),
)  # fmt: skip
DIVIDE_ASKS = Pool(
    ("What is {a} / {b}?", "What is {a} divided by {b}?", "{a} / {b}", "{a} divided by {b}?", "Divide {a} by {b}.",
     "How much is {a} / {b}?", "Calculate {a} / {b}.", "What's {a} divided by {b}?", "Tell me {a} divided by {b}."),
    ("Could you work out {a} divided by {b} for me?", "What number is {a} / {b}?"),
)  # fmt: skip
MORE_ASKS = Pool(
    ("{n} has {a} {x} and gets {b} more. How many {x} does {n} have?", "{n} has {a} {x}. {n} buys {b} more. How many now?",
     "There are {a} {x} and then {b} more {x}. How many {x} are there?", "I have {a} {x} and find {b} more. How many {x}?",
     "If {n} has {a} {x} and I give {b} more, how many {x} are there?"),
    ("{n} owns {a} {x} and receives {b} more. How many {x} is that?", "A box holds {a} {x}; {n} adds {b} more. How many {x}?"),
)  # fmt: skip
LESS_ASKS = Pool(
    ("{n} has {a} {x} and gives away {b}. How many {x} are left?", "{n} has {a} {x} and eats {b}. How many are left?",
     "There are {a} {x} and {b} are lost. How many {x} are left?", "I have {a} {x} and lose {b}. How many {x} remain?"),
    ("{n} owns {a} {x} and loses {b}. How many {x} are left?",),
)  # fmt: skip
COMPARE_ASKS = Pool(
    ("Which number is bigger, {a} or {b}?", "Which is bigger: {a} or {b}?", "What is larger, {a} or {b}?",
     "Is {a} or {b} bigger?", "Which one is greater, {a} or {b}?"),
    ("Tell me the bigger number: {a} or {b}?", "Between {a} and {b}, which is larger?"),
)  # fmt: skip
PARITY_ASKS = Pool(
    ("Is {a} even or odd?", "Is {a} odd or even?", "Is the number {a} even or odd?", "{a}: even or odd?"),
    ("Would you call {a} even or odd?", "Tell me whether {a} is even or odd."),
)  # fmt: skip
THINGS = "apples books coins stars eggs cards pens balls stones flowers cookies marbles".split()


def is_held_pair(a: int, b: int) -> bool:
    """True for one ordered pair of two-digit addends in ten; plain training sums leave it out."""
    return (a * 131 + b * 57 + a * b * 7) % 10 == 3 and a >= 10 and b >= 10


def addends(w: Writer) -> tuple[int, int]:
    """Two addends on this writer's side of the split; mostly a + b <= 99."""
    while True:
        if w.held or w.chance(0.9):
            total = w.rng.randint(2, 99) if w.chance(0.5) else w.rng.randint(20, 99)
            a = w.rng.randint(1, total - 1)
            b = total - a
        else:
            a, b = w.rng.randint(0, 99), w.rng.randint(0, 99)
        if is_held_pair(a, b) == (w.held and w.chance(0.7)):
            return a, b


def sum_question(w: Writer) -> Exchange:
    """An addition."""
    a, b = addends(w)
    return Exchange(w.noisy(w.pick(SUM_ASKS, a=a, b=b)), f"{a} + {b} = {a + b}.", (f"= {a + b}.",))


def minus_question(w: Writer) -> Exchange:
    """A subtraction with a result that is not negative."""
    a = w.rng.randint(1, 99)
    b = w.rng.randint(0, a)
    return Exchange(w.noisy(w.pick(MINUS_ASKS, a=a, b=b)), f"{a} - {b} = {a - b}.", (f"= {a - b}.",))


def times_question(w: Writer) -> Exchange:
    """A product from the small table."""
    a, b = w.rng.randint(0, 12), w.rng.randint(0, 12)
    return Exchange(w.noisy(w.pick(TIMES_ASKS, a=a, b=b)), f"{a} * {b} = {a * b}.", (f"= {a * b}.",))


def divide_question(w: Writer) -> Exchange:
    """A division without a rest."""
    b, result = w.rng.randint(1, 10), w.rng.randint(0, 10)
    a = b * result
    return Exchange(w.noisy(w.pick(DIVIDE_ASKS, a=a, b=b)), f"{a} / {b} = {result}.", (f"= {result}.",))


def story_sum(w: Writer) -> Exchange:
    """A one-step word problem."""
    from .facts import FIRST_NAMES

    values = {"n": w.rng.choice(FIRST_NAMES), "x": w.rng.choice(THINGS)}
    if w.chance(0.5):
        a, b = w.rng.randint(1, 30), w.rng.randint(1, 30)
        answer = f"{a} + {b} = {a + b}, so there are {a + b} {values['x']}."
        return Exchange(w.noisy(w.pick(MORE_ASKS, a=a, b=b, **values)), answer, (f"= {a + b},",))
    a = w.rng.randint(2, 50)
    b = w.rng.randint(1, a - 1)
    answer = f"{a} - {b} = {a - b}, so there are {a - b} {values['x']}."
    return Exchange(w.noisy(w.pick(LESS_ASKS, a=a, b=b, **values)), answer, (f"= {a - b},",))


def number_question(w: Writer) -> Exchange:
    """Comparison or parity."""
    a, b = w.rng.sample(range(1, 100), 2)
    if w.chance(0.5):
        top, low = max(a, b), min(a, b)
        return Exchange(
            w.noisy(w.pick(COMPARE_ASKS, a=a, b=b)), f"{top} is bigger than {low}.", (f"{top} is bigger",)
        )
    word = "odd" if a % 2 else "even"
    return Exchange(w.noisy(w.pick(PARITY_ASKS, a=a)), f"{a} is {word}.", (word,))


def any_calculation(w: Writer) -> Exchange:
    """Any arithmetic question, mostly additions."""
    style = w.rng.random()
    if style < 0.58:
        return sum_question(w)
    if style < 0.76:
        return minus_question(w)
    if style < 0.87:
        return times_question(w)
    if style < 0.91:
        return divide_question(w)
    return story_sum(w) if style < 0.97 else number_question(w)


def sum_document(w: Writer) -> Document:
    """One addition (the evaluated family)."""
    exchange = sum_question(w)
    return Document(
        [user(exchange.question), assistant(exchange.answer)], "sums", expect=list(exchange.expect)
    )


def calculation_document(w: Writer) -> Document:
    """One to five calculations in one conversation: dense practice."""
    messages = []
    for _ in range(1 if w.held else w.rng.randint(1, 5)):
        exchange = any_calculation(w)
        messages += [user(exchange.question), assistant(exchange.answer)]
    return Document(messages, "arithmetic", expect=list(exchange.expect))


def explain_sum(a: int, b: int) -> str:
    """The working of a sum, digit by digit: the text of a think block."""
    if a < 10 and b < 10:
        return f"I add {a} and {b}. That gives {a + b}."
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = f"I write {ones % 10} and carry 1" if ones > 9 else f"I write {ones}"
    total = tens + ones // 10
    middle = f"{a // 10} + {b // 10} + 1 = {total}" if ones > 9 else f"{a // 10} + {b // 10} = {total}"
    return f"Ones: {a % 10} + {b % 10} = {ones}, {carry}. Tens: {middle}. That gives {a + b}."
