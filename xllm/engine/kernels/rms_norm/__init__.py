"""Root-mean-square norm.

reference.py   torch, any device
"""
