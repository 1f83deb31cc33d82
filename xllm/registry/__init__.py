"""Which engine instances exist. An engine publishes itself, services watch.

registry.py  InstanceRegistry: the Protocol, and what is published
memory.py    MemoryRegistry: one process, no lease; etcd comes with the cluster
"""
