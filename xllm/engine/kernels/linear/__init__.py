"""x @ W^T + b.

reference.py   torch, any device
"""
