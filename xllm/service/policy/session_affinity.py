"""Session affinity: requests of one session (or tenant) go to the same instance as long as it is there.

Rendezvous hashing: every instance draws a number from its name and the session's; the highest wins. When an instance
comes or goes only the sessions it wins or held move. A session is a tenant's own: "1" of one has nothing to do with
"1" of another. An overloaded instance is passed over; a request without session and tenant goes where the load is
least.
"""

from __future__ import annotations

import hashlib

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.least_loaded import least_loaded
from xllm.service.policy.load import guard_limit
from xllm.service.policy.score import Policy, ScoreTable
from xllm.types.ids import InstanceId
from xllm.types.request import Request


def _score(request: Request, view: ClusterView) -> ScoreTable:
    session_id = "" if request.session is None else request.session.id
    if not session_id and not request.tenant:
        return least_loaded.score(request, view)
    key = f"{request.tenant}\0{session_id}" if session_id else request.tenant
    items = view.routable()
    instances = [item.id for item in items]
    session = hashlib.blake2b(key.encode("utf-8", "surrogatepass") + b"\0", digest_size=8)
    draw = [_draw(session.copy(), name) for name in instances]
    limit = guard_limit(items)
    is_guarded = [float(item.num_outstanding > limit) for item in items]
    totals = [1.0 - drawn + guarded for drawn, guarded in zip(draw, is_guarded, strict=True)]
    return ScoreTable(instances, totals, {"draw": draw, "is_guarded": is_guarded})


def _draw(session: hashlib.blake2b, instance: InstanceId) -> float:
    """The number, 0 to 1, that an instance draws for the session hashed so far."""
    session.update(instance.encode())
    return int.from_bytes(session.digest(), "little") / 2**64


session_affinity = Policy("session_affinity", _score)
