"""New keys and values into the slots of their blocks.

reference.py   torch, any device
native.py      into blocks in pairs order
"""
