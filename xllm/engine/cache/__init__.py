"""Plans of KV memory: which block holds what. No bytes, no torch.

    pool.py          what everybody asks about the blocks of a group
    block_pool.py    blocks of one KV group: free, used, cached, leased, pinned; O(1) for all of it
    prefix_cache.py  which blocks hold which prefix: promised, committed, retracted; LRU by the pool
    block_table.py   what one sequence holds in every group
    pages/           layout xtensor: physical pages, virtual ranges, and where blocks are placed
    kv_cache.py      the one door for the scheduler: match, allocate, fork, commit, retract, free, check

The block invariant, per group, after every step: ``free + used + cached + leased + pinned == total``.
"""
