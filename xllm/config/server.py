"""The engine process: its RPC endpoint and its executor."""

from __future__ import annotations

from dataclasses import dataclass

from xllm.config.schema import opt, require


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """How an engine is reached and what carries out its steps."""

    endpoint: str = opt("auto", "--endpoint")
    """Where the engine listens: ``tcp://HOST:PORT`` (port 0: any free one) or ``unix:///PATH``; ``auto``:
    a socket that only this user can open."""
    executor: str = opt("local", "--executor")
    """``local``: run the model in this process; ``timed:PROFILE``: no model, a step lasts what PROFILE
    says."""
    rpc_token: str = opt("", "--rpc-token", secret=True)
    """Shared secret that services must present; needed to listen on a network address. ``xllm serve`` draws
    its own for every engine it starts."""
    grace_s: float = 10.0
    """Seconds a lost service connection may take to come back before its requests are ended."""
    heartbeat_s: float = 0.5
    """Seconds between two load reports to every connected service."""
    drain_timeout_s: float = 30.0
    """Seconds that requests in flight have after SIGTERM; then the engine ends."""
    migrate_after_s: float = 10.0
    """Seconds after SIGTERM from which requests that still run go on at another instance of the group, where
    one takes them."""
    profile_dir: str = "profiles"
    """Directory that profiler traces are written to; made when the first one is."""
    num_trace_records: int = 65_536
    """Scheduling decisions kept for /debug/requests."""

    def __post_init__(self) -> None:
        kind, _, profile = self.executor.partition(":")
        known = self.executor == "local" or (kind == "timed" and bool(profile))
        is_address = self.endpoint == "auto" or ":" in self.endpoint
        require(
            (
                (is_address, f"endpoint is {self.endpoint!r}: use auto, unix:/PATH or HOST:PORT"),
                (known, f"executor is {self.executor!r}: use local or timed:PROFILE"),
                (0 <= self.grace_s < float("inf"), f"grace_s is {self.grace_s}: at least 0"),
                (self.heartbeat_s > 0, f"heartbeat_s is {self.heartbeat_s}: more than 0"),
                (
                    0 <= self.drain_timeout_s <= 86_400,
                    f"drain_timeout_s is {self.drain_timeout_s}: 0 to 86400",
                ),
                (
                    0 <= self.migrate_after_s <= 86_400,
                    f"migrate_after_s is {self.migrate_after_s}: 0 to 86400",
                ),
                (self.num_trace_records >= 1, f"num_trace_records is {self.num_trace_records}: at least 1"),
            ),
            "server",
        )
