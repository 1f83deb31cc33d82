"""The service: takes requests from the edge, chooses instances, follows attempts, survives their deaths.

    cluster/      what is known of the instances: immutable views, one state machine per instance, health
    policy/       pure functions (Request, ClusterView) -> a score per instance; the least wins
    kv_index.py   which instance holds which cached prefix, from KV events
    prefix_feeds.py  that index, and how well what it predicts holds
    refusals.py   the errors that turn a request away, with their hints
    overload.py   how much a replica holds at once; 429 with the predicted wait beyond
    hold_queue.py requests that wait here: order over tenants and classes, bounds
    holding.py    who waits there, and when it goes on
    router.py     applies the policy; says why nothing can serve
    dispatch/     one entry per request: attempts, merging of output streams, deadlines (a state machine)
    service.py    Service: the edge's Backend; joins all of this
    connections.py  one connection per published instance, kept open
    delivery.py   carries out dispatch's orders: sends, aborts, answers, outputs to readers
    tasks.py      what runs beside the caller, held until it ends
    status.py     health, loads, decisions and waits as the edge shows them
    counts.py     decisions, losses and waiting requests, for /metrics
    wire_names.py other names for requests whose id another replica uses in the same engine
    election.py   at most one replica holds a duty, by compare-and-set in the registry
    build.py      wires all of it from the configuration

Sockets and tasks are in service.py, connections.py, delivery.py, status.py and election.py; everything else is
synchronous and takes its time from a Clock.
"""
