"""A cluster of real processes under load and under fire, and the books that prove that nothing was lost.

processes.py  one ``xllm`` process with a log file: start, signal, wait
world.py      World: etcd, engines and service replicas, with a fault proxy on every link
namespaces.py an engine on a network of its own, whose cable is pulled (optional)
requests.py   the pool of request bodies, and what an undisturbed cluster answers to each
load.py       clients that send them, compare every answer and keep books
schedule.py   a seeded list of faults
faults.py     how each fault is made and healed
watch.py      polls the replicas: when a fault was noticed, who was suspected without one
run.py        everything together: calm, storm, settling, verdict, report

``python benchmarks/chaos.py`` runs it for minutes, ``test_chaos.py`` for some seconds.
"""
