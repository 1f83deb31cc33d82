"""Text: everything between characters and token ids. No torch, no transformers.

tokenizer       Tokenizer: reads tokenizer.json; encode, decode, exact bytes of a token
decoding        what a tokenizer's decoder does, reduced to one of three exactly streamable kinds
detokenizer     IncrementalDetokenizer: token ids in, finished text out; any chunking gives the whole decode
stop_strings    StopStringMatcher: exact cut at a stop string, whatever the chunking
chat_template   ChatTemplate: sandboxed Jinja2, messages -> prompt text
content_format  does a template want message content as a string or as a list of parts

Tool-call and reasoning parsers come to this room as `tool_parsers/` and `reasoning/` (not built yet).
"""

from __future__ import annotations
