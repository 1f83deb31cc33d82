"""Router: applies the policy to the cluster as it is now."""

from __future__ import annotations

from collections.abc import Callable

from xllm.errors import CapacityError
from xllm.service.cluster.view import ClusterView
from xllm.types.ids import InstanceId
from xllm.types.request import Request, Route

Policy = Callable[[Request, ClusterView], Route | None]

_RETRY_AFTER_S = 5.0


class Router:
    """One policy; it grows by policies, not by branches here."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def route(self, request: Request, view: ClusterView) -> Route:
        """Where a request goes.

        Raises:
            CapacityError: 503, no instance can take it; the message says in what state they are.
        """
        route = self.try_route(request, view)
        if route is None:
            states = ", ".join(f"{item.id} is {item.state}" for item in view.instances) or "none is known"
            raise CapacityError(
                f"no engine can take a request: {states}", status=503, retry_after_s=_RETRY_AFTER_S
            )
        return route

    def try_route(
        self, request: Request, view: ClusterView, avoid: frozenset[InstanceId] = frozenset()
    ) -> Route | None:
        """Where a request goes when it must not be one of ``avoid``; None: nobody else can take it."""
        if avoid:
            view = ClusterView(instances=tuple(item for item in view.instances if item.id not in avoid))
        return self._policy(request, view)
