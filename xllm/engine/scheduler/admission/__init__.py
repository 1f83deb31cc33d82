"""Who may enter the running set: one Protocol, four policies, selected by name.

policy.py       AdmissionPolicy: the Protocol, and the table of names
watermark.py    enter while all known tokens fit and a margin stays (aggressive)
conservative.py enter only if everybody could use every token they may
past_future.py  enter if the predicted peak of memory fits; lengths are sampled from finished outputs
zero_evict.py   enter if nobody would be evicted within a number of tokens, counted in exact blocks
history.py      OutputHistory: lengths of finished outputs per class of requests
peak.py         the peak formula: what a running set will need at most
table.py        policies by name, and their settings
"""
