"""Attention over keys and values that lie in blocks.

reference.py   torch, any device
native.py      the CPU library
"""
