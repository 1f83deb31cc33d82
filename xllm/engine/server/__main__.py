"""``python -m xllm.engine.server --control-fd N``; see main.py."""

from xllm.engine.server.main import main

main()
