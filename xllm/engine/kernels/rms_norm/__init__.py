"""Root-mean-square norm.

reference.py   torch, any device
native.py      the CPU library
"""
