"""Dispatch: the life of each request between edge and engines, as a state machine.

commands.py      what dispatch orders: send, abort, accepted, refuse, deliver
live_request.py  the books of one request: what was delivered, what is owed, its next attempt
deadlines.py     when each request is over whatever happens
offers.py        the next attempt, asked of another instance while the present one goes on
retry.py         how often, how fast and for how long a request is tried again
dispatch.py      Dispatch: attempts, failover, migration, merging of streams
"""
