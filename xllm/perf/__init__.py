"""How long work takes: one model for scheduler, service policies, timed executor and simulator.

    step_time.py  StepShape -> StepEstimate by a roofline; named profiles and profiles from JSON files

Later: learned factors refined online, TTFT and TPOT predictors.
"""
