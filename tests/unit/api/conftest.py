"""A real uvicorn over a fake backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.backend import FakeBackend
from tests.fakes.edge_server import EdgeServer


@pytest.fixture(scope="module")
def shared_server() -> Iterator[EdgeServer]:
    """One server per file: starting and draining costs more than most tests."""
    backend = FakeBackend()
    with EdgeServer(backend) as running:
        yield running
    assert running.num_tasks_left == 0, "a task of the edge outlived the server"
    assert backend.running == {}


@pytest.fixture
def server(shared_server: EdgeServer) -> EdgeServer:
    shared_server.backend.requests.clear()
    shared_server.backend.aborts.clear()
    return shared_server


@pytest.fixture
def backend(server: EdgeServer) -> FakeBackend:
    found = server.backend
    assert isinstance(found, FakeBackend)
    return found
