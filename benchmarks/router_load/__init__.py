"""Paced streams through a router: what it adds to each token, and what CPU it takes.

stamped_engine.py   ``xllm engine`` that notes when it got each request and when it handed over each token
stamped_backend.py  a bare OpenAI backend whose tokens are the time at which it wrote them
client.py           keep-alive clients that note when each token came
routers.py          the routers: how each is installed, started and asked
paced.py            a run: streams kept open, CPU and tokens of a window; short answers in a closed loop
"""
