"""Mixture of experts: router and expert MLPs.

native.py      one call of the CPU library over packed weights
reference.py   torch, any device
"""
