from __future__ import annotations

import pytest
import urllib3

from pipeline.demo.bench import fill, serve_events
from pipeline.demo.store import Store


def test_the_benchmarks_events_refer_to_what_is_served_and_have_a_real_size() -> None:
    store = Store(history=1)
    fill(store, events=3000, pods=200)
    pods = {version.decode()["metadata"]["uid"] for version in store.snapshot("pods").versions}
    events = store.snapshot("events").versions
    assert len(events) == 3000
    assert {version.decode()["involvedObject"]["uid"] for version in events} == pods
    assert 1000 <= sum(len(version.raw) for version in events) / len(events) <= 1300
    slices = [version.decode() for version in store.snapshot("endpointslices").versions]
    assert {endpoint["targetRef"]["uid"] for each in slices for endpoint in each["endpoints"]} == pods


def test_a_server_process_serves_them_uncompressed() -> None:
    with serve_events(1200) as url:
        pool = urllib3.PoolManager(retries=False, timeout=5.0)
        page = pool.request("GET", f"{url}/api/v1/events?limit=500", headers={"Accept-Encoding": "gzip"})
        assert len(page.json()["items"]) == 500
        assert "Content-Encoding" not in page.headers
    with pytest.raises(urllib3.exceptions.HTTPError):
        pool.request("GET", url)


def test_a_server_process_that_does_not_come_up_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="before it served"), serve_events(1, port=70_000):
        pass
