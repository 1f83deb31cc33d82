"""Mixture of experts: router and expert MLPs.

reference.py   torch, any device
"""
