"""Session affinity: requests of one session (or tenant) go to the same instance as long as it is there.

Rendezvous hashing: every instance draws a number from its name and the session's; the highest wins. When an instance
comes or goes only the sessions it wins or held move. An overloaded instance is passed over; a request without session
and tenant goes where the load is least.
"""

from __future__ import annotations

import hashlib

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.least_loaded import least_loaded
from xllm.service.policy.load import guard_limit
from xllm.service.policy.score import Policy, Score
from xllm.types.request import Request


def _score(request: Request, view: ClusterView) -> tuple[Score, ...]:
    key = request.session.id if request.session is not None else request.tenant
    if not key:
        return least_loaded.score(request, view)
    items = view.routable()
    limit = guard_limit(items)
    session = hashlib.blake2b(key.encode("utf-8", "surrogatepass") + b"\0", digest_size=8)
    scores = []
    for item in items:
        pair = session.copy()
        pair.update(item.id.encode())
        draw = int.from_bytes(pair.digest(), "little") / 2**64
        is_guarded = item.num_outstanding > limit
        parts = {"draw": draw, "is_guarded": float(is_guarded)}
        scores.append(Score(item.id, 1.0 - draw + is_guarded, parts))
    return tuple(scores)


session_affinity = Policy("session_affinity", _score)
