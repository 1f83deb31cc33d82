"""How long work takes: one model for scheduler, service policies, timed executor and simulator.

step_time.py   StepShape -> StepEstimate by a roofline (dense, MoE, MLA); profiles by name or from JSON
time_model.py  TimeModel: the port the brain asks; NullTimeModel
learned.py     LearnedStepTime: the roofline with factors refined online by recursive least squares
latency.py     time to the first token and per output token on an instance with work, from published costs
priors.py      the roofline of a model shape on a device, from data sheets
fit_cache.py   fits of earlier runs, JSON under the user's cache directory
"""
