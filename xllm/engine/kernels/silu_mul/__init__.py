"""The gated activation of a fused gate-and-up projection.

reference.py   torch, any device
native.py      the CPU library
"""
