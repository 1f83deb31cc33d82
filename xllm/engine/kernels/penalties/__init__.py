"""Penalties on the logits of tokens that a sequence already holds.

native.py      one call of the CPU library, in place
reference.py   torch, any device
"""
