"""One RPC between processes: a framed asyncio stream that carries msgpack structs of :mod:`xllm.types.wire`.

address.py    "unix:/path" and "host:port": parsing, connecting, listening
frame.py      bytes <-> frames: 4-byte length, 4-byte call id, body
codec.py      message <-> body, for one pair of unions (engine now, registry later)
failure.py    error of xllm.errors <-> Failure message
link.py       one connection: greeting, joined writes, back-pressure, calls with deadlines, loss
answering.py  answer_call: a call served, its error sent back
client.py     EngineClient: the typed stub of an engine
server.py     EngineApi, EngineConnection, EngineListener: the engine's side
"""
