"""x @ W^T + b.

reference.py   torch, any device
native.py      the CPU library
measure.py     how fast it is by the number of rows; prefill chunks are chosen from that
"""
