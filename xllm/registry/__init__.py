"""Which engine instances exist. An engine publishes itself, services watch.

registry.py      InstanceRegistry: what a service sees, and what is published
memory.py        MemoryRegistry: instances of one process's own making
store.py         Store: the key-value Protocol below a registry of several processes; its bounds
memory_store.py  MemoryStore: the embedded store, a synchronous state machine
local.py         LocalStore: it, with a timer, on this process's event loop
watch_queue.py   from callbacks to an async iteration, bounded
rpc_server.py    RegistryListener: carries a LocalStore on our RPC
rpc_store.py     RpcStore: its client
etcd.py          EtcdStore: a real etcd, through its JSON gateway
open_store.py    the store that the configuration names
records.py       keys and records in a store
publisher.py     Publisher: keeps this process's record there, under a lease
directory.py     Directory: the records of a store as an InstanceRegistry
"""
