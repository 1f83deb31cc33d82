"""Things every room needs and that need no room above: no torch, no sockets, no global state.

clock.py        the only source of time: Clock, MonotonicClock, ManualClock
waits.py        every wait of a process with owner, reason and deadline; the SIGUSR1 dump
event_loop.py   runs a coroutine on uvloop where it is installed
trace.py        always-on ring of scheduling decisions per request
registry.py     plug-in tables: name -> "module:attribute", imported when asked for
metrics.py      the declared table of Prometheus metrics and one registry object over it
log.py          logging set-up: one line per record, human or JSON
model_files.py  where a model's files are: demo, directory, hub id
resolve_here.py resolves a configuration on this machine, from the model's files
openmp.py       what OpenMP reads when torch loads it: threads, short spins
tally.py        counts that remember which of them have changed
tenant_counters.py  the weighted service each tenant has had
garbage.py      the cycle collector: off while a process starts, then only for what serving makes
malloc.py       freed buffers of a step stay in the process
machine.py      gathers MachineFacts (cores, memory, cgroup limits, CPU flags) without torch
"""
