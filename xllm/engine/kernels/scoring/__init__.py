"""Log-probabilities and ranks of tokens, and the best tokens of a row.

native.py      one call of the CPU library
reference.py   torch, any device
"""
