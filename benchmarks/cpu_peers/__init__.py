"""What `benchmarks/compare_cpu.py` is made of.

options       command line
workloads     W1 to W6: sizes, prompts, arrival times
client        one HTTP client for every system; does nothing but note times while it runs
machine       bandwidth probe, busy time, memory, process trees
server        one server: start, first token, stop, freeze, thaw, memory
systems       how each system is started and with which environment
install       each peer in its own virtual environment; llama-server from source
formats       the random checkpoints in each system's format
rounds        interleaved rounds, discarded runs, the time budget
capacity      W6: bisection on a grid of rates
record        the JSON file: sessions, runs, merging
report        medians, ratios, the table
shim_*        HTTP in front of peers that bring none that takes token ids; run in the peers' environments
make_*        model files; run where the packages are
bw_probe.c    reads 400 MiB with as many threads as CPUs
"""
