"""answer_call: the serving side of a call, the same for every service on a link."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from xllm.errors import ProtocolError, XllmError
from xllm.rpc.failure import to_failure
from xllm.rpc.link import Link

In = TypeVar("In")

log = logging.getLogger(__name__)


def answer_call(link: Link[In, Any], call_id: int, message: In, answer: Callable[[In], object]) -> None:
    """Send what ``answer`` returns, or the error it raises; a call of id 0 wants no answer.

    What a link may send includes ``Failure``. An answer too large for a frame is a failure of its call alone.
    """
    try:
        reply = answer(message)
    except XllmError as exc:
        reply = to_failure(exc)
    except Exception as exc:  # top loop of the RPC: our bug must not cost the other calls
        log.exception("serving %s failed", type(message).__name__)
        reply = to_failure(exc)
    if call_id:
        try:
            link.send(call_id, reply)
        except ProtocolError as exc:
            link.send(call_id, to_failure(exc))
