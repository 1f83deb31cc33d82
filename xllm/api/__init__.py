"""The HTTP edge: OpenAI's API over a ``Backend``. Text in, text out; engines and instances are unknown here.

backend.py        the Protocol that a service implements, and ServedModel
text_pipeline.py  TextPipeline: tokenizer, chat template and sampling defaults of the served model
protocol.py       bodies of requests as structs
fields.py         what every field means here: honoured, inert or refused; generates docs/reference/fields.md
decode.py         bytes -> struct, every failure a 400 that names the field
preprocess.py     prompt + parameters -> Request (shared with LLM)
choice_text.py    tokens of one choice -> text: detokeniser, stop strings
generation.py     one call to the backend: several requests, their choices, abort and close
logprobs.py       log-probabilities in the chat and the completions format
chunk_writer.py   ChunkWriter: the bytes of a stream's events, text alone from ready-made ones
chat.py           /v1/chat/completions
completions.py    /v1/completions
sse.py            the streaming response: ready-made bytes, client disconnects
errors.py         typed errors -> OpenAI's error object
guard.py          API keys, body size, request counts (ASGI)
observe.py        what the edge measures about a request
openapi.py        the schema, generated from the structs
debug.py          /health /ready /metrics /version /debug
app.py            wires all of it
serve.py          uvicorn, SIGTERM and draining
turn_writes.py    writes of one loop turn leave together
"""
