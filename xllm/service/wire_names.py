"""WireNames: requests as engines know them, where a client-chosen id is in use by another replica's request.

Ids are unique per replica only: two clients of two replicas may choose the same one, and both requests may meet in one
engine. The second comer is then sent under another name, and every message about it is translated. Nearly always
there is nothing to translate, and it costs nothing. What only routing reads, the session, stays here.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from xllm.errors import InvalidRequest, XllmError
from xllm.types.ids import RequestId
from xllm.types.output import RequestOutput
from xllm.types.request import Request


class WireNames:
    """Renamed requests of one replica; forgotten when the request ends."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._wire: dict[RequestId, str] = {}
        self._own: dict[str, RequestId] = {}

    def __len__(self) -> int:
        return len(self._wire)

    @staticmethod
    def is_clash(error: XllmError) -> bool:
        """Whether an engine refused a request since it runs another one of that id."""
        return isinstance(error, InvalidRequest) and error.param == "id"

    def rename(self, request: Request) -> Request:
        """The request under a name that no other replica uses, from now on."""
        wire = f"{request.id}@{self._replica}"
        self._wire[request.id] = wire
        self._own[wire] = request.id
        return self.outgoing(request)

    def outgoing(self, request: Request) -> Request:
        """The request as engines know it."""
        wire = self._wire.get(request.id)
        if wire is None and request.session is None:
            return request
        return structs.replace(request, id=wire or request.id, session=None)

    def wire_id(self, request_id: RequestId) -> str:
        """The name engines know."""
        return self._wire.get(request_id, request_id)

    def incoming(self, outputs: Sequence[RequestOutput]) -> Sequence[RequestOutput]:
        """Outputs under our own ids."""
        if not self._own:
            return outputs
        own = self._own
        return [
            structs.replace(output, request_id=own[output.request_id]) if output.request_id in own else output
            for output in outputs
        ]

    def forget(self, request_id: RequestId) -> None:
        """The request has ended."""
        wire = self._wire.pop(request_id, None)
        if wire is not None:
            del self._own[wire]
