"""Configuration as a leaf: what the user said, what was decided and why. Imports only types and errors.

schema.py         options of a section: flag, environment variable, type, doc, read from its dataclass
model.py          ModelConfig: which model, its tokenizer, template and number format
cache.py          CacheConfig: KV blocks, their memory, the prefix cache
scheduler.py      SchedulerConfig: step budget, running and queued limits, policy
runner.py         RunnerConfig: device and how a step is run on it
server.py         ServerConfig: the engine's RPC endpoint and its executor
api.py            ApiConfig: the HTTP edge
cluster.py        the registry, what an instance publishes, how a service judges instances
log.py            LogConfig: logging
serve.py          EngineConfig and ServeConfig: the sections composed
load.py           merges defaults, YAML, environment, flags and --set; remembers who said what
model_json.py     typed reading of a model's JSON files
model_spec.py     ModelSpec: the facts of a model directory that planning needs, read without torch
machine_facts.py  MachineFacts: cores, memory, CPU flags, GPU (gathered by base/machine.py)
memory_plan.py    weights + KV + activations against the memory there is, before anything is loaded
resolved.py       ResolvedEngineConfig: a configuration without "auto", and the decisions behind it
check.py          cross checks, one named function each, reported together
resolve.py        EngineConfig + ModelSpec + MachineFacts -> ResolvedEngineConfig
reference.py      docs/reference/configuration.md from the docstrings of the options
show.py           --print-config: each effective value, its source and reason
"""
