"""Starts, watches and ends engine processes. Local today; ray and env (Slurm, LeaderWorkerSet) come later.

engine_process.py  EngineProcess: one engine as a child process: ready hand-shake, log lines, end
log_pump.py        copies a child's output line by line and remembers the last lines
weights_bar.py     progress bar while weights are read
local.py           what ``xllm engine``, ``xllm serve`` and ``xllm service`` run on one machine
"""
