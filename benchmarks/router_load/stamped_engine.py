"""``xllm engine`` with notes: when it accepted each request, and when it handed each output to its RPC connection.

    python -m benchmarks.router_load.stamped_engine NOTES.json engine MODEL ...

The notes are written at the end: ``[request id, first token index or -1 for accepted, tokens, monotonic seconds]``.
The monotonic clock is the machine's, the same for every process.
"""

from __future__ import annotations

import atexit
import json
import sys
import time
from pathlib import Path
from typing import Any

from xllm.cli.main import main
from xllm.engine.server.sessions import Sessions
from xllm.rpc.server import EngineConnection
from xllm.types.ids import StepId
from xllm.types.output import RequestOutput
from xllm.types.request import Request

notes: list[tuple[str, int, int, float]] = []
_own, _deliver = Sessions.own, Sessions.deliver


def own(self: Sessions, connection: EngineConnection, request: Request) -> None:
    """Note a request that was accepted."""
    notes.append((request.id, -1, 0, time.monotonic()))
    _own(self, connection, request)


def deliver(self: Sessions, step: StepId, outputs: list[RequestOutput]) -> None:
    """Note outputs before they leave."""
    now_s = time.monotonic()
    notes.extend([(each.request_id, each.first_token_index, len(each.token_ids), now_s) for each in outputs])
    _deliver(self, step, outputs)


def _write(path: Path) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(notes))
    part.rename(path)


if __name__ == "__main__":
    patched: Any = Sessions
    patched.own, patched.deliver = own, deliver
    atexit.register(_write, Path(sys.argv.pop(1)))
    sys.exit(main())
