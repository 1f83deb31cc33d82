"""x @ W^T + b.

reference.py   torch, any device
native.py      the CPU library
"""
