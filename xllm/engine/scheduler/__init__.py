"""Which sequences run in the next step, and how many tokens each.

sequence.py    Sequence: the one mutable object, with the map of its token ranges
queue.py       WaitingQueue: ordered, removable
order.py       order keys: fcfs, priority
admission/     who may enter: watermark, conservative, past-future, zero-evict
preemption.py  who gives way when blocks run out
limits.py      SchedulerLimits: the numbers a step must respect
rows.py        RowTable: numbers of the body's persistent rows
scheduler.py   Scheduler: hands out the step's budget; refuses features
"""
