"""Attention over keys and values that lie one token after another.

reference.py   torch, any device
"""
