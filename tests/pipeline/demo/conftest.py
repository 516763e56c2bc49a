from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from tests.pipeline.demo.client import Client


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer(Store(), bookmark_interval_s=0.1) as server:
        yield server


@pytest.fixture
def store(server: DemoServer) -> Store:
    return server.store


@pytest.fixture
def client(server: DemoServer) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.close()
