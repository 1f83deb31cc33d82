"""Which sequences run in the next step, and how many tokens each.

sequence.py    Sequence: the one mutable object, with the map of its token ranges
queue.py       WaitingQueue: ordered, removable
order.py       OrderPolicy: who goes first; fcfs, priority, deadline
urgency.py     UrgencyOrder: deadlines while they can be met, value per second when not
fairness.py    FairOrder: token-fair tenants over another order
budget.py      StepBudget: how large a chunk may be beside decodes with a TPOT budget
pace.py        how fast prompts are computed at the present load
early_rejection.py  EntryGate: who is refused because its first token would be late
admission/     who may enter: watermark, conservative, past-future, zero-evict
preemption.py  who gives way when blocks run out
limits.py      SchedulerLimits: the numbers a step must respect
rows.py        RowTable: numbers of the body's persistent rows
scheduler.py   Scheduler: hands out the step's budget; refuses features
"""
