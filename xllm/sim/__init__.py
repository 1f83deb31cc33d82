"""The simulator: the production brain under a manual clock, with the timed runner as its body.

events.py   EventQueue: what happens next, in simulated time
engine.py   SimEngine: EngineCore + TimedRunner as one instance on the event queue
trace.py    TraceRequest: a request with its arrival and a true output length that the brain never sees
report.py   Report: what every request experienced, and what the engine did
run.py      simulate(): a workload through one engine

One engine today; clusters (network, router, role changes) come to this room later.
"""
