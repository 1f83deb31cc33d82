"""The HTTP edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiConfig:
    """Where the edge listens, who may ask, and its limits."""

    host: str = opt("127.0.0.1", "--host")
    """Address to listen on; ``0.0.0.0`` opens the server to the network (then set an API key)."""
    port: int = opt(8000, "--port")
    """TCP port; 0: any free one, printed when ready."""
    api_key: tuple[str, ...] = opt((), "--api-key", secret=True)
    """Keys that clients must send as ``Authorization: Bearer KEY``; empty: no key is asked for."""
    admin_api_key: str | None = opt(None, "--admin-api-key", secret=True)
    """Key for /debug and admin routes; without it they need an API key where one is set."""
    max_body_bytes: int = 32 * 1024 * 1024
    """Largest request body; more is answered 413."""
    request_timeout_s: float = 3600.0
    """A request that has not ended after this long ends with an error; a client may ask for less."""
    stall_timeout_s: float = 5.0
    """/health turns 503 when the engine has work but shows no progress for this long."""
    routing_policy: Literal["round_robin", "least_loaded", "cache_aware", "slo_aware", "session_affinity"] = (
        opt("round_robin", "--routing-policy")
    )
    """How the service chooses among several engines."""
    default_ttft_slo_ms: float = 1000.0
    """``slo_aware``: budget for the first token of requests that give none; engines are not told."""
    default_tpot_slo_ms: float = 50.0
    """``slo_aware``: budget per output token of requests that give none."""
    failover_timeout_s: float = 10.0
    """A request whose engine was lost waits at most this long for another one that can take it."""
    max_open_requests: int = 8192
    """Choices that the service holds at once; more are answered 429. Offline work may take half; one client at most
    seven times what it leaves free, so 7/8 when it is alone. 0: no bound."""
    max_open_requests_per_tenant: int = 0
    """A bound for one client (API key, else the ``user`` field) besides; 0: none."""
    max_waiting_per_instance: int = 64
    """Requests an instance gets beyond the sequences it can run; more wait in the service, where the order is fair over
    all instances. 0: no bound, nothing waits in the service."""
    hold_order: Literal["tenant_fair", "fcfs"] = "tenant_fair"
    """Order of requests that wait in the service, online before offline. ``tenant_fair``: the client that has had the
    least service first, and who holds less of a full class takes a place of who holds the most (weights:
    ``scheduler.tenant_weights``); ``fcfs``: by priority, then arrival, and a full class takes nobody."""
    max_held_online: int = 2048
    """Online requests that may wait in the service; more are answered 429, first of all the client with the most of
    them. 0: no bound."""
    max_held_offline: int = 2048
    """The same for offline work."""
    max_held_per_tenant: int = 0
    """A bound for one client over both classes besides; 0: none."""
    shutdown_timeout_s: float = opt(30.0, "--shutdown-timeout")
    """On SIGTERM, seconds that requests in flight may take to finish; 0: end them at once."""
    metrics_compat: Literal["none", "vllm"] = opt("none", "--metrics-compat")
    """``vllm``: /metrics carries every parallel metric under its ``vllm:`` name too."""
    root_path: str = opt("", "--root-path")
    """Path prefix that a proxy in front has removed."""
    allowed_origins: tuple[str, ...] = ()
    """Origins that browsers may call from (CORS); ``*``: any; empty: none."""
    keep_alive_s: float = 65.0
    """Seconds an idle client connection is kept."""

    def __post_init__(self) -> None:
        positive = (
            ("max_body_bytes", self.max_body_bytes),
            ("request_timeout_s", self.request_timeout_s),
            ("stall_timeout_s", self.stall_timeout_s),
            ("keep_alive_s", self.keep_alive_s),
            ("default_ttft_slo_ms", self.default_ttft_slo_ms),
            ("default_tpot_slo_ms", self.default_tpot_slo_ms),
        )
        require(
            (
                (0 <= self.port <= 65535, f"port is {self.port}: 0 to 65535"),
                (bool(self.host), "host is empty: use 127.0.0.1 or 0.0.0.0"),
                *((v > 0, f"{name} is {v}: more than 0") for name, v in positive),
                (
                    self.max_open_requests >= 0 and self.max_open_requests_per_tenant >= 0,
                    f"max_open_requests is {self.max_open_requests}, per tenant "
                    f"{self.max_open_requests_per_tenant}: at least 0",
                ),
                *(
                    (getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: at least 0")
                    for name in (
                        "max_waiting_per_instance",
                        "max_held_online",
                        "max_held_offline",
                        "max_held_per_tenant",
                    )
                ),
                (
                    self.failover_timeout_s >= 0,
                    f"failover_timeout_s is {self.failover_timeout_s}: at least 0",
                ),
                (
                    self.shutdown_timeout_s >= 0,
                    f"shutdown_timeout_s is {self.shutdown_timeout_s}: at least 0",
                ),
                (
                    self.root_path == "" or self.root_path.startswith("/"),
                    f"root_path is {self.root_path!r}: begin it with /",
                ),
                (all(self.api_key), "api_key holds an empty key"),
                (self.admin_api_key != "", "admin_api_key is empty"),
            ),
            "api",
        )
