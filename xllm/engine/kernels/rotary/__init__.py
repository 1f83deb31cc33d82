"""Rotary position embedding.

reference.py   torch, any device
"""
