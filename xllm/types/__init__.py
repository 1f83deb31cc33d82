"""The frozen vocabulary of xLLM: what requests, steps, results and messages are. stdlib + msgspec only.

    ids.py         names of requests, instances, blocks, rows
    sampling.py    SamplingParams: every sampling parameter a user may set, validated
    request.py     Request: everything an engine needs to know about one request
    tenant.py      names of tenants: digests of API keys and user labels
    kv_layout.py   KVLayout: what one token's (or one state's) cache entry is made of
    pages.py       PageGeometry: sizes of pages and virtual ranges (layout xtensor)
    block_hash.py  the only definition of a block's identity
    batch.py       Batch (one step, brain to body) and BatchResult (body to brain)
    output.py      RequestOutput: tokens of one choice, engine to edge
    instance.py    InstanceInfo, LoadReport, HealthReport
    kv_event.py    what enters and leaves an instance's prefix cache
    wire.py        every message of every socket, versioned

Each object is born in one place: Request at the edge, Batch in the scheduler, BatchResult in the worker, RequestOutput
in the engine core. Reserved fields say in their comment what they wait for; nothing reads them before that is built.
"""
