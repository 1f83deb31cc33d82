"""Dispatch: the life of each request between edge and engines, as a state machine.

commands.py  what dispatch orders: send, abort, deliver, refuse
dispatch.py  Dispatch: one attempt per request today; retry and migration come to this room
"""
