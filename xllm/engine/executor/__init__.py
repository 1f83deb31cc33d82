"""The Executor port over one thread; torch-free, under both towers: the body's runner and the timed one use it.

thread.py    ThreadExecutor: steps in order on one thread, each answered exactly once
inbox.py     MaskInbox: late inputs of a step, waited for with a deadline
faults.py    which exceptions fail a step and which lose the device
watchdog.py  told when steps begin and end
facts.py     ExecutorFacts: what was found out while an executor was built
profiler.py  hole for a profiler: Profiler, NullProfiler
"""
