"""Starts, watches and ends engine processes. Local today; ray and env (Slurm, LeaderWorkerSet) come later.

engine_process.py  EngineProcess: one engine as a child process: ready hand-shake, log lines, end
log_pump.py        copies a child's output line by line and remembers the last lines
weights_bar.py     progress bar while weights are read
starting_engine.py  an engine that starts on a thread
supervisor.py       Supervisor: keeps engine processes running, with back-off
cluster.py          a service with supervised engines, or over a registry
cluster_admin.py    what ``xllm cluster`` asks and orders
local.py           what ``xllm engine``, ``xllm serve`` and ``xllm service`` run on one machine
"""
