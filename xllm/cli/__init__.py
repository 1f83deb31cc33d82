"""The ``xllm`` command.

main.py     finds the subcommand, runs it, turns errors into one message and an exit status
flags.py    flags of config sections: adds them to a parser and loads what was said
serve.py    xllm serve: the HTTP edge and its engines
engine.py   xllm engine: one engine process
service.py  xllm service: the HTTP edge over engines that run elsewhere
cluster.py  xllm cluster: shows the instances of a registry, drains one
doctor.py   xllm doctor: the machine, versions, and what would be chosen
"""
