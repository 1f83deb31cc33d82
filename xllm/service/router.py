"""Router: applies the policy to the cluster as it is now."""

from __future__ import annotations

from dataclasses import replace

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.score import Decision, Policy
from xllm.service.refusals import no_engine
from xllm.types.ids import InstanceId
from xllm.types.request import Request, Route


class Router:
    """One policy; it grows by policies, not by branches here."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def wants_prefixes(self) -> bool:
        """Whether the policy looks at who has cached what."""
        return self._policy.wants_prefixes

    def route(self, request: Request, view: ClusterView) -> Route:
        """Where a request goes.

        Raises:
            CapacityError: 503, no instance can take it; the message says in what state they are.
        """
        return self.decide(request, view).route

    def decide(self, request: Request, view: ClusterView) -> Decision:
        """Where a request goes, and why; raises as :meth:`route`."""
        decision = self._policy.decide(request, view)
        if decision is None:
            states = ", ".join(f"{item.id} is {item.state}" for item in view.instances) or "none is known"
            raise no_engine(states)
        return decision

    def try_decide(
        self, request: Request, view: ClusterView, avoid: frozenset[InstanceId] = frozenset()
    ) -> Decision | None:
        """Where a request goes when it must not be one of ``avoid``; None: nobody else can take it."""
        if avoid:
            view = replace(view, instances=tuple(item for item in view.instances if item.id not in avoid))
        return self._policy.decide(request, view)
