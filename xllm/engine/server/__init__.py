"""The engine process: RPC server, step loop, ready hand-shake with its parent.

step_loop.py      drives EngineCore over an Executor on the event loop; knows nothing of connections
sessions.py       which connection owns which request; grouping of outputs; grace after a loss
progress.py       liveness by progress, not by an open port
kv_feed.py        KV events with sequence numbers for those who subscribed
engine_server.py  EngineServer: implements EngineApi from the parts above; drain, death, end
membership.py     the engine's place in a registry
startup_profile.py  steps measured before the first request (--profile-startup)
control.py        the channel to the parent process: what is said in each direction
main.py           entry of the process: reads the configuration, builds, serves
__main__.py       runs main.py as ``python -m xllm.engine.server``
"""
