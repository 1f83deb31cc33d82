"""Tool calls: schemas with many names, the call, and the sentence after the tool's response."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .chat import talk
from .facts import CITIES, COUNTRIES, FIRST_NAMES
from .phrases import Document, Pool, Writer, assistant, user
from .questions import any_question


@dataclass(frozen=True)
class ToolFamily:
    """One kind of tool: its possible names, argument names, questions and how its response is told."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    arguments: tuple[tuple[str, ...], ...]  # per argument: possible names
    types: tuple[str, ...]
    asks: Pool
    values: Callable[[Writer], tuple[Any, ...]]
    respond: Callable[[Writer, tuple[Any, ...]], tuple[Any, str]]


def _city(w: Writer) -> str:
    style = w.rng.random()
    if style < 0.45:
        return w.rng.choice(COUNTRIES).capital
    return w.rng.choice(CITIES) if style < 0.75 else w.made_up_word()


def _weather(w: Writer, values: tuple[Any, ...]) -> tuple[Any, str]:
    sky = w.rng.choice(("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy"))
    degrees = w.rng.randint(-9, 39)
    warm = w.rng.choice(("temperature", "temp", "temperature_c", "temp_c", "degrees", "celsius"))
    seen = w.rng.choice(("condition", "conditions", "sky", "weather", "description", "summary"))
    response: dict[str, Any] = {warm: degrees, seen: sky} if w.chance(0.6) else {seen: sky, warm: degrees}
    if w.chance(0.35):
        response = {w.rng.choice(("city", "location", "place")): values[0], **response}
    text = f"It is {degrees} degrees and {sky} in {values[0]}."
    if w.chance(0.15):
        return f"{degrees} degrees, {sky}", text
    return response, text


def _time(w: Writer, values: tuple[Any, ...]) -> tuple[Any, str]:
    clock = f"{w.rng.randint(0, 23):02d}:{w.rng.randint(0, 59):02d}"
    key = w.rng.choice(("time", "local_time", "now", "clock"))
    response = clock if w.chance(0.25) else {key: clock}
    return response, f"It is {clock} in {values[0]}."


def _expression(w: Writer) -> tuple[Any, ...]:
    sign = w.rng.choice("+-*/+*")
    return (f"{w.rng.randint(2, 999)} {sign} {w.rng.randint(2, 999)}",)


def _calculated(w: Writer, values: tuple[Any, ...]) -> tuple[Any, str]:
    result = w.rng.randint(0, 99999) if w.chance(0.5) else w.rng.randint(0, 999)
    response = str(result) if w.chance(0.35) else {w.rng.choice(("result", "value", "answer")): result}
    return response, f"The result of {values[0]} is {result}."


def _converted(w: Writer, values: tuple[Any, ...]) -> tuple[Any, str]:
    amount = w.rng.randint(1, 9999)
    key = w.rng.choice(("amount", "result", "converted", "value"))
    return {key: amount}, f"{values[0]} {values[1]} is {amount} {values[2]}."


def _searched(w: Writer, values: tuple[Any, ...]) -> tuple[Any, str]:
    count = w.rng.randint(1, 90)
    title = f"{w.made_up_word()} {w.made_up_word()}"
    return {"hits": count, "top": title}, f'I found {count} results. The first one is "{title}".'


def _timer(w: Writer, values: tuple[Any, ...]) -> tuple[Any, str]:
    response: Any = "ok" if w.chance(0.4) else {"status": w.rng.choice(("ok", "done", "set", "started"))}
    return response, f"The timer is set to {values[0]} minutes."


def _mailed(w: Writer, values: tuple[Any, ...]) -> tuple[Any, str]:
    response: Any = "sent" if w.chance(0.4) else {"status": w.rng.choice(("ok", "sent", "done"))}
    return response, f"I sent the message to {values[0]}."


def _message(w: Writer) -> tuple[Any, ...]:
    name = w.rng.choice(FIRST_NAMES) if w.chance(0.7) else w.made_up_word()
    texts = (
        "hello",
        "I am late",
        "see you soon",
        "good luck",
        "call me",
        "dinner is ready",
        "happy birthday",
        "come home",
    )
    return name, w.rng.choice(texts)


def _price(w: Writer, values: tuple[Any, ...]) -> tuple[Any, str]:
    price = w.rng.randint(1, 999)
    key = w.rng.choice(("price", "value", "quote"))
    return {key: price}, f"The price of {values[0]} is {price}."


MONEY = ("euros", "dollars", "yen", "pounds", "francs", "pesos", "rupees", "won")
FAMILIES = (
    ToolFamily(
        ("get_weather", "get_weather", "get_weather", "get_current_weather", "weather", "weather_lookup", "fetch_weather",
         "current_weather", "get_forecast"),
        ("Get the weather in a city", "Get the current weather", "Current weather of a place", "Returns the weather",
         "Get the current weather in a given location", "Weather now", "Get weather for a city."),
        (("city", "city", "location", "location", "place", "town", "city_name"),), ("string",),
        Pool(("What is the weather in {0}?", "What's the weather in {0}?", "What's the weather like in {0}?", "weather in {0}",
              "How is the weather in {0}?", "Is it raining in {0}?", "Is it warm in {0}?", "Tell me the weather in {0}.",
              "What is the temperature in {0}?", "How warm is it in {0}?", "Will I need a coat in {0}?", "Weather for {0}?",
              "Is it sunny in {0}?", "Check the weather in {0}.", "What is the weather like in {0} today?",
              "How cold is it in {0} now?", "What is the weather in {0} today?", "Get the weather for {0}.",
              "Do I need an umbrella in {0}?", "What's the weather like in {0} right now?", "Please get the weather of {0}.", "[Can|Could|Would|Will] you [tell me|find out|look up|say|show me] [how|what] the weather is [like |]in {0}?", "[Should|Shall|Must|Do] I [wear|bring|need|pack|take] a [scarf|hat|sweater|raincoat|cap] [in|for|to] {0}?",
              "I [travel|fly|drive|walk|go] to {0}[ soon| today| tomorrow|]. [How is the weather?|Will it rain?|Is it cold there?|What is the weather like?]", "[Show|Find|Tell|Fetch|Send] me the [weather|current weather|weather now|weather of today] [in|of|for|from] {0}.",
              "[How|What] is the [weather|temperature] [up|down|out|over|here|] in {0}?",),
             ("Could you check what the weather is like in {0}?", "How's the weather over in {0}?", "Should I take a jacket in {0}?",
              "I am going to {0}. What is the weather there?", "Give me the current weather for {0}.")),
        lambda w: (_city(w),), _weather),
    ToolFamily(
        ("get_time", "get_time", "get_current_time", "time", "clock", "local_time", "world_clock", "current_time"),
        ("Get the time in a city", "Get the current time", "Local time of a place", "Returns the time", "Clock"),
        (("city", "city", "location", "place", "timezone", "town"),), ("string",),
        Pool(("What time is it in {0}?", "What is the time in {0}?", "Tell me the time in {0}.", "Time in {0}?", "time in {0}",
              "How late is it in {0}?", "What's the time in {0}?", "What is the local time in {0}?", "Clock time in {0}?",
              "Can you tell me the time in {0}?", "What time is it now in {0}?", "Check the time in {0}.", "[Can|Would|Will] you [check|say|look up|find out] [what time it is|the time|how late it is] [over |]in {0}?", "[Do you know|Have you got|Show me|Give me] the time in {0}[?|.]",
              "I [want to call|phone|write to|visit] {0}. [What time is it?|How late is it there?|What is the time there?]",),
             ("Could you check what time it is in {0}?", "Do you know the time over in {0}?", "I am calling {0}. What time is it there?")),
        lambda w: (_city(w),), _time),
    ToolFamily(
        ("calculator", "calculator", "calculate", "calc", "evaluate", "compute", "math", "eval_expression"),
        ("Evaluate an expression", "A calculator", "Compute a result", "Do arithmetic", "Calculate an expression"),
        (("expression", "expression", "expr", "formula", "input", "calculation"),), ("string",),
        Pool(("What is {0}?", "Calculate {0}.", "Compute {0}.", "{0}", "{0} = ?", "How much is {0}?", "Work out {0}.",
              "Use the calculator: {0}", "Please calculate {0}.", "Evaluate {0}.", "Solve {0}.", "What's {0}?", "Tell me {0}.", "[Can|Would|Will|Could] you [calculate|work out|solve|evaluate] {0}[ for me| for us|]?", "I [want|would like|look for|ask for] [the result of|the value of|the answer to|] {0}.", "[Help|Support] me [to calculate|and solve|to solve] {0}.",),
             ("Could you compute {0} for me?", "I need the result of {0}.", "Help me with {0}, please.")),
        _expression, _calculated),
    ToolFamily(
        ("convert_currency", "currency_converter", "convert", "exchange"),
        ("Convert money", "Convert an amount to another currency", "Currency converter"),
        (("amount", "value"), ("from", "source", "from_currency"), ("to", "target", "to_currency")),
        ("number", "string", "string"),
        Pool(("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "What are {0} {1} in {2}?", "{0} {1} to {2}",
              "Change {0} {1} into {2}.", "Exchange {0} {1} to {2}.", "I have {0} {1}. How many {2} is that?", "[Can|Would|Will] you [change|exchange|convert|turn] {0} {1} [into|to|in] {2}[ for me|]?", "How [many|much] {2} [are|is|make|do they give me for|will I get for|can I buy for|would I have with] {0} {1}?", "I [want|need|would like] {2} for [my |]{0} {1}.", "What do I get in {2} for {0} {1}?",),
             ("Could you convert {0} {1} to {2}?", "How many {2} do I get for {0} {1}?")),
        lambda w: (w.rng.randint(1, 999), *w.rng.sample(MONEY, 2)), _converted),
    ToolFamily(
        ("search", "web_search", "search_web", "find", "lookup", "search_documents"),
        ("Search the web", "Search for something", "Find documents", "Look something up"),
        (("query", "query", "q", "text", "keywords"),), ("string",),
        Pool(("Search for {0}.", "Search the web for {0}.", "Find {0}.", "Look up {0}.", "Please search for {0}.",
              "Can you search for {0}?", "Look for {0}.", "search {0}", "Find something about {0}.", "[Can|Would|Will|Could] you [search|look up|find|search for] {0} [online|on the internet|in the web|for me|on a search engine]?", "[Run|Start|Make|Try] a search [for|about|on] {0}.", "[Search|Look|Go] [on the web|online|the internet] for {0}[.| please.]", "What [is|can you find] on the web about {0}?",),
             ("Could you look for {0} on the web?", "Do a search for {0}.")),
        lambda w: (w.rng.choice(("cheap flights", "good books", "red shoes", "old maps", "new music", w.made_up_word(),
                                 f"{w.made_up_word()} {w.made_up_word()}")),), _searched),
    ToolFamily(
        ("set_timer", "timer", "start_timer", "create_timer", "set_alarm"),
        ("Set a timer", "Start a timer", "Set a timer in minutes"),
        (("minutes", "minutes", "duration", "duration_minutes"),), ("integer",),
        Pool(("Set a timer for {0} minutes.", "Start a timer for {0} minutes.", "Timer {0} minutes", "Remind me in {0} minutes.",
              "Wake me in {0} minutes.", "Please set a timer of {0} minutes.", "Set the timer to {0} minutes.", "[Can|Would|Will] you [set|start|make|begin|give me] a {0} [minute|minutes|min] [timer|alarm|countdown]?", "I [want|would like|could use] a [timer|alarm] [for|of] {0} [minutes|min].", "{0} [minute|min] timer[, please|]", "[Make|Set|Create|Begin] a {0} minute [timer|alarm|countdown].", "[Could|Can] you [set|make] a timer [of|for] {0} minutes?",),
             ("Could you start a {0} minute timer?", "I need a timer of {0} minutes.")),
        lambda w: (w.rng.randint(1, 99),), _timer),
    ToolFamily(
        ("send_message", "send_email", "send_mail", "message", "notify"),
        ("Send a message", "Send an email to somebody", "Send a text to a person"),
        (("to", "recipient", "name"), ("text", "message", "body")), ("string", "string"),
        Pool(('Send {0} the message "{1}".', "Tell {0}: {1}", 'Write to {0}: "{1}"', "Send a message to {0}: {1}",
              'Message {0} "{1}".', 'Send "{1}" to {0}.', "Please write {0}: {1}", '[Can|Would|Will] you [send|write|text|mail] "{1}" to {0}?', "[Inform|Text|Ping|Remind|Write] {0}: {1}", "[Could|Can] you [tell|write|text] {0}: {1}", 'I want to [tell|send] {0} "{1}".',),
             ('Could you send "{1}" to {0}?', "Let {0} know: {1}")),
        _message, _mailed),
    ToolFamily(
        ("get_stock_price", "stock_price", "get_price", "price_lookup", "quote"),
        ("Get the price of a stock", "Look up a price", "Returns the stock price"),
        (("symbol", "ticker", "name", "item"),), ("string",),
        Pool(("What is the price of {0}?", "How much does {0} cost?", "Stock price of {0}?", "Price of {0}?",
              "Get the price of {0}.", "What's the stock price of {0}?", "Tell me the price of {0}.", "[Can|Would|Will] you [tell me|look up|get|find|say] the price of {0}?", "[At|For] [which|what] price [does|can] {0} [sell|trade|be bought]?", "What does {0} cost[ now| today|]?", "How [expensive|much] is {0} [now|today|at the moment]?", "[Check|Show me|Find] the price of {0}.",),
             ("Could you check the price of {0}?", "At what price is {0} now?")),
        lambda w: (w.made_up_word() if w.chance(0.5) else w.made_up_word().upper()[:4],), _price),
)  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """A tool as offered in one conversation: the family with chosen names."""

    family: ToolFamily
    name: str
    arguments: tuple[str, ...]
    schema: dict[str, Any]


def offer(w: Writer, family: ToolFamily) -> Tool:
    """Choose names and write the schema in OpenAI's form."""
    name = w.rng.choice(family.names)
    arguments = tuple(w.rng.choice(names) for names in family.arguments)
    if w.chance(0.08 if w.held else 0.2):
        name = f"{name}_{w.made_up_word().lower()}"
    properties: dict[str, Any] = {}
    for argument, kind in zip(arguments, family.types, strict=True):
        properties[argument] = {"type": kind}
        if w.chance(0.2):
            properties[argument]["description"] = f"The {argument.replace('_', ' ')}"
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if w.chance(0.75):
        parameters["required"] = list(arguments)
    if w.chance(0.06):
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if w.chance(0.8):
        function["description"] = w.rng.choice(family.descriptions)
    function["parameters"] = parameters
    if w.chance(0.06):
        function["strict"] = True
    return Tool(family, name, arguments, {"type": "function", "function": function})


def call_message(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """An assistant message that only calls tools."""
    rendered = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": rendered}


def tool_message(response: Any) -> dict[str, Any]:
    """A tool's response; objects become JSON text."""
    return {"role": "tool", "content": response if isinstance(response, str) else json.dumps(response)}


def _tool_round(w: Writer, tool: Tool) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """A question, its call (sometimes two), the response and the sentence; the first call; words of the answer."""
    values = tool.family.values(w)
    ask = w.noisy(w.pick(tool.family.asks, *values), keep_case=True)
    call = {"name": tool.name, "arguments": dict(zip(tool.arguments, values, strict=True))}
    response, told = tool.family.respond(w, values)
    if tool.family is FAMILIES[0] and w.chance(0.15) and not w.held:
        other = _city(w)
        second = {"name": tool.name, "arguments": {tool.arguments[0]: other}}
        ask = w.noisy(f"What is the weather in {values[0]} and {other}?", keep_case=True)
        response_too, told_too = tool.family.respond(w, (other,))
        messages = [user(ask), call_message([call, second]), tool_message(response), tool_message(response_too),
                    assistant(f"{told} {told_too}")]  # fmt: skip
        return messages, call, []
    numbers = [word.strip('."') for word in told.split() if word.strip('."-').replace(":", "").isdigit()]
    return [user(ask), call_message([call]), tool_message(response), assistant(told)], call, numbers or [told]


def tool_document(w: Writer) -> Document:
    """Tools are offered; most questions need one, some do not."""
    rng = w.rng
    count = rng.choice((1, 1, 1, 2, 2, 3))
    tools = [offer(w, family) for family in rng.sample(FAMILIES[:3] * 2 + FAMILIES[3:], count)]
    unique = list({tool.name: tool for tool in tools}.values())
    schemas = [tool.schema for tool in unique]
    messages: list[dict[str, Any]] = []
    # Several rounds share one list of tools: the schemas are most of the tokens.
    for _ in range(1 if w.held else rng.choice((1, 2, 3, 4))):
        if w.chance(0.15):
            exchange = any_question(w) if w.chance(0.6) else talk(w)
            if "no tool" not in exchange.answer:
                messages += [user(exchange.question), assistant(exchange.answer)]
                if w.held:
                    return Document(messages, "tools_unused", schemas, expect=list(exchange.expect))
                continue
        added, call, words = _tool_round(w, rng.choice(unique))
        if w.held:
            if w.chance(0.3):
                return Document(added, "tool_answers", schemas, expect=words)
            return Document(added[:2], "tools", schemas, expect_calls=[call])
        messages += added
    return Document(messages, "tools", schemas)
