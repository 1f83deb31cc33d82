"""One rank of an engine: what owns the device. The thread itself is ``xllm.engine.executor``.

build_local.py  from a resolved configuration to an executor with its model loaded
faults.py       which exceptions of torch fail one step and which mean that the device is gone
profiler.py     TorchProfiler: a Chrome trace of all threads and kernels
"""
