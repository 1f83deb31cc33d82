"""Layers: plain modules, built with the kernels they call and told everything they compute.

    linear.py      Linear, and the fused projections
    embedding.py   token embedding and the output head
    norm.py        RMSNorm
    rotary.py      rotary frequencies with every scaling; cos and sin of a step
    attention.py   self-attention: fused QKV, optional query and key norm, rotary, backend, output projection
    mlp.py         gated MLP
    moe.py         mixture-of-experts MLP
    build_context.py   kernels, attention backend, dtype and device that layers are built with
    sources.py     which checkpoint tensors fill which part of a parameter

Shape letters: T tokens, D model, H query heads, G key/value heads, K head dimension, I intermediate,
E experts, V vocabulary.
"""
