"""Names of tenants: a digest of what identifies them, never the thing itself; they show in traces and metrics."""

from __future__ import annotations

import hashlib


def key_tenant(api_key: bytes) -> str:
    """The tenant of an API key."""
    return f"key:{hashlib.sha256(b'xllm-tenant-key:' + api_key).hexdigest()[:16]}"


def user_tenant(user: str) -> str:
    """The tenant of a ``user`` label."""
    return f"user:{hashlib.sha256(user.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
