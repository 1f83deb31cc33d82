"""One rank of an engine: the thread that owns the device, and what watches it.

local.py     LocalExecutor: the Executor port over one own thread, steps in order, several in flight
inbox.py     late inputs of a step (masks), waited for with a deadline
faults.py    which exceptions fail one step and which mean that the device is gone
watchdog.py  hole for whoever wants to know that a step began and ended: Watchdog, NullWatchdog
"""
