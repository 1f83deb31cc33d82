"""Dispatch: the life of each request between edge and engines, as a state machine.

commands.py      what dispatch orders: send, abort, accepted, refuse, deliver
live_request.py  the books of one request: what was delivered, what is owed, its next attempt
retry.py         how often, how fast and for how long a request is tried again
dispatch.py      Dispatch: attempts, failover, merging of streams, deadlines
"""
