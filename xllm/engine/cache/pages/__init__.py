"""Which physical page lies where in whose virtual range (layout ``xtensor``). Decisions only: no bytes, no torch.

page_pool.py     physical pages: free, allocated, mapped, reusable; references, names, LRU
range_book.py    virtual ranges: what is mapped where, who is in which range, the orders this makes
partial_match.py a prefix that ends inside a page: whose tokens to copy
placement.py     the hole of the cache: RangePlacement, and PlainPlacement for block tables
"""
