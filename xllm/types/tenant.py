"""Names of tenants: a digest of what identifies them, never the thing itself; they show in traces and metrics."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from xllm.errors import ConfigError


def key_tenant(api_key: bytes) -> str:
    """The tenant of an API key."""
    return f"key:{hashlib.sha256(b'xllm-tenant-key:' + api_key).hexdigest()[:16]}"


def user_tenant(user: str) -> str:
    """The tenant of a ``user`` label."""
    return f"user:{hashlib.sha256(user.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def parse_weights(texts: Iterable[str]) -> dict[str, float]:
    """``user:alice=2`` or ``key:1f2e...=4`` (the tenant as ``/debug`` shows it) -> weight per tenant.

    Raises:
        ConfigError: a text is malformed or a weight is not above 0.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        kind, colon, rest = name.partition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (equals and colon and rest and kind in ("user", "key")) or not 0 < weight < math.inf:
            raise ConfigError(
                f"tenant weight {text!r} cannot be read",
                hint="user:NAME=WEIGHT or key:HASH=WEIGHT, a weight above 0",
            )
        weights[user_tenant(rest) if kind == "user" else name] = weight
    return weights
