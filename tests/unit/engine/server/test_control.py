from __future__ import annotations

import os
import socket
import threading

import pytest

from xllm.engine.server.control import (
    LineChannel,
    PhaseDone,
    StopEngine,
    ToEngineProcess,
    ToParent,
    watch_parent,
)
from xllm.errors import DeadlineExceeded, ProtocolError


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_lines_arrive_whole_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    parent: LineChannel[ToParent, ToEngineProcess] = LineChannel(ends[0], ToParent)
    for piece in (
        b'{"type":"phase","phase":"a","sec',
        b'onds":1.5}\n{"type":"phase",',
        b'"phase":"b","seconds":2}\n',
    ):
        ends[1].sendall(piece)
    assert parent.receive(5) == PhaseDone(phase="a", seconds=1.5)
    assert parent.receive(5) == PhaseDone(phase="b", seconds=2.0)
    with pytest.raises(DeadlineExceeded):
        parent.receive(0.01)
    ends[1].close()
    assert parent.receive(5) is None
    assert parent.send(StopEngine()) is False
    parent.close()


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"type":"stop"}\n', b'{"type":"phase"}\n', b"\xff\n"])
def test_a_malformed_line_is_a_protocol_error(line: bytes, ends: tuple[socket.socket, socket.socket]) -> None:
    parent: LineChannel[ToParent, ToEngineProcess] = LineChannel(ends[0], ToParent)
    ends[1].sendall(line)
    with pytest.raises(ProtocolError):
        parent.receive(5)
    parent.close()
    ends[1].close()


@pytest.mark.parametrize("how", ["closed", "not the parent any more", "malformed"])
def test_the_end_of_the_parent_is_heard(how: str, ends: tuple[socket.socket, socket.socket]) -> None:
    child: LineChannel[ToEngineProcess, ToParent] = LineChannel(ends[0], ToEngineProcess)
    gone, stops = threading.Event(), []
    parent_pid = os.getppid() if how != "not the parent any more" else 1_000_000_000
    thread = watch_parent(child, parent_pid, on_stop=stops.append, on_gone=gone.set)
    ends[1].sendall(b'{"type":"stop","drain_s":1.5}\n')
    if how == "closed":
        ends[1].close()
    elif how == "malformed":
        ends[1].sendall(b"?\n")
    assert gone.wait(100)
    thread.join(100)
    assert stops == [StopEngine(drain_s=1.5)]
    child.close()
    ends[1].close()
