"""Endpoints of Services: differences between two states of a slice, and the news that they make."""

import pytest

from transforms.dedup import news_of
from transforms.endpoints import difference, endpoints_of
from transforms.facts import Facts
from transforms.record import decode, endpoints_record
from transforms.seen import Seen
from transforms.types import (
    Change,
    Changes,
    Endpoint,
    EndpointConditions,
    EndpointSlice,
    Listed,
    ObjectMeta,
    ObjectReference,
    Service,
)

LABEL = "kubernetes.io/service-name"


def endpoint(name: str, ready: bool | None = True, address: str = "") -> Endpoint:
    return Endpoint(
        addresses=[address or f"10.0.0.{len(name)}"],
        conditions=EndpointConditions(ready=ready),
        target_ref=ObjectReference(kind="Pod", namespace="shop", name=name, uid=f"uid-{name}"),
        node_name="node-1",
    )


def piece(version: int, *endpoints: Endpoint, service: str = "web", uid: str = "slice") -> EndpointSlice:
    metadata = ObjectMeta(
        name="web-x",
        namespace="shop",
        uid=uid,
        resource_version=str(version),
        labels={LABEL: service} if service else {},
    )
    return EndpointSlice(metadata=metadata, endpoints=list(endpoints))


def news(seen: Seen, *slices: EndpointSlice, kind: str = "MODIFIED", listed: Listed | None = None):
    changes = Changes("c", [], [], [Change(kind, one, 5) for one in slices], listed)
    return news_of(changes, seen).endpoints


def recorded(one):
    return decode(endpoints_record("c", one, Facts()).data)


def names(endpoints) -> list[str]:
    return [one.name for one in endpoints]


def test_who_joined_left_and_turned_is_told_apart():
    before = endpoints_of(piece(1, endpoint("a"), endpoint("bb"), endpoint("ccc", ready=False)))
    after = endpoints_of(piece(2, endpoint("a", ready=False), endpoint("ccc"), endpoint("dddd")))
    change = difference(before, after)
    assert (names(change.joined), names(change.left)) == (["dddd"], ["bb"])
    assert (names(change.became_ready), names(change.became_unready)) == (["ccc"], ["a"])


def test_a_condition_that_is_missing_or_null_counts_as_ready():
    bare = Endpoint(addresses=["10.0.0.1"])
    change = difference(
        endpoints_of(piece(1, endpoint("a", ready=None), bare)), endpoints_of(piece(2, endpoint("a"), bare))
    )
    assert not change


def test_another_address_of_the_same_pod_is_one_that_left_and_one_that_joined():
    change = difference(
        endpoints_of(piece(1, endpoint("a", address="10.0.0.1"))),
        endpoints_of(piece(2, endpoint("a", address="10.0.0.2"))),
    )
    assert (names(change.joined), names(change.left)) == (["a"], ["a"])


def test_what_has_no_target_is_known_by_its_addresses():
    before, after = ([Endpoint(addresses=[address]) for address in pair] for pair in (["::1", "::2"], ["::2", "::3"]))
    change = difference(endpoints_of(piece(1, *before)), endpoints_of(piece(2, *after)))
    assert [one.addresses for one in (*change.joined, *change.left)] == [("::3",), ("::1",)]


def test_a_record_says_of_each_endpoint_whether_it_is_ready_and_how_many_are():
    seen = Seen()
    news(seen, piece(1, endpoint("a"), endpoint("bb")), kind="LISTED")
    (one,) = news(seen, piece(2, endpoint("bb"), endpoint("ccc", ready=False)))
    change = recorded(one).endpoints_change
    assert [(e.name, e.ready) for e in (*change.joined, *change.left)] == [("ccc", False), ("a", True)]
    assert (change.ready, change.total) == (1, 2)


def test_the_changes_of_a_slice_in_one_chunk_are_one_record_of_what_came_of_them():
    seen = Seen()
    news(seen, piece(1, endpoint("a")), kind="LISTED")
    (one,) = news(seen, piece(2, endpoint("a"), endpoint("bb")), piece(3, endpoint("bb")))
    assert one.object.resource_version == "3"
    change = difference(one.previous, one.object)
    assert (names(change.joined), names(change.left)) == (["bb"], ["a"])


def test_changes_that_come_to_nothing_are_no_news():
    seen = Seen()
    news(seen, piece(1, endpoint("a")), kind="LISTED")
    assert news(seen, piece(2), piece(3, endpoint("a"))) == []
    assert news(seen, piece(3, endpoint("a"))) == []


def test_a_slice_of_no_service_is_passed_over():
    assert news(Seen(), piece(1, endpoint("a"), service="")) == []


@pytest.mark.parametrize("version", [2, 1])
def test_of_a_deleted_slice_all_have_left(version):
    seen = Seen()
    news(seen, piece(1, endpoint("a")), kind="LISTED")
    (one,) = news(seen, piece(version, endpoint("a")), kind="DELETED")
    record = recorded(one)
    assert names(record.endpoints_change.left) == ["a"]
    assert (record.endpoints_change.ready, record.endpoints_change.total) == (0, 0)
    assert (record.services[0].name, record.services[0].how) == ("web", "self")
    assert not record.found_by_list
    assert seen.state("slice") is None


def test_a_slice_that_moved_to_another_service_left_the_one_and_joined_the_other():
    seen = Seen()
    news(seen, piece(1, endpoint("a"), endpoint("bb")), kind="LISTED")
    (one,) = news(seen, piece(2, endpoint("a"), service="api"))
    record = recorded(one)
    change = record.endpoints_change
    assert (change.service, change.former_service) == ("api", "web")
    assert (names(change.joined), names(change.left)) == (["a"], ["a", "bb"])
    assert [service.name for service in record.services] == ["api", "web"]


def test_of_a_slice_that_lost_its_label_all_have_left():
    seen = Seen()
    news(seen, piece(1, endpoint("a")), kind="LISTED")
    (one,) = news(seen, piece(2, endpoint("a"), service=""))
    record = recorded(one)
    change = record.endpoints_change
    assert (change.service, change.former_service, change.total) == ("web", "", 0)
    assert (names(change.joined), names(change.left)) == ([], ["a"])
    assert [service.name for service in record.services] == ["web"]
    assert seen.state("slice") is None


def test_what_a_whole_list_does_not_show_was_deleted_meanwhile():
    seen = Seen()
    news(seen, piece(1, endpoint("a")), piece(1, endpoint("bb"), uid="other"), kind="LISTED")
    listed = Listed("endpointslices", "", "9", 7, 0, 1)
    (one,) = news(seen, piece(1, endpoint("a")), kind="LISTED", listed=listed)
    assert (one.type, one.object.uid, one.object.resource_version, one.observed_us) == ("UNLISTED", "other", "9", 7)
    record = recorded(one)
    assert names(record.endpoints_change.left) == ["bb"]
    assert record.found_by_list


def test_a_list_from_a_cache_that_lags_says_nothing_of_what_is_newer():
    seen = Seen()
    news(seen, piece(10, endpoint("a")), kind="ADDED")
    assert news(seen, listed=Listed("endpointslices", "", "9", 7, 0, 1)) == []
    assert seen.state("slice") is not None
    assert len(news(seen, listed=Listed("endpointslices", "", "11", 7, 0, 1))) == 1


def test_a_slice_without_endpoints_goes_without_a_record():
    seen = Seen()
    news(seen, piece(1), kind="ADDED")
    assert news(seen, listed=Listed("endpointslices", "", "9", 7, 0, 1)) == []
    assert seen.state("slice") is None


def test_what_a_list_showed_says_so():
    seen = Seen()
    (first,) = news(seen, piece(1, endpoint("a")), kind="LISTED")
    (later,) = news(seen, piece(2), kind="LISTED")
    (watched,) = news(seen, piece(3, endpoint("a")), kind="MODIFIED")
    assert [recorded(one).found_by_list for one in (first, later, watched)] == [True, True, False]


def test_a_list_of_one_namespace_says_nothing_of_the_others_nor_of_other_resources():
    seen = Seen()
    news(seen, piece(1, endpoint("a")), kind="LISTED")
    seen.saw_state("s", Service(metadata=ObjectMeta(name="web", namespace="shop", uid="s", resource_version="1")))
    for listed in (
        Listed("endpointslices", "payments", "9", 7, 0, 1),
        Listed("endpointslices", "", "9", 7, 0, 1, ("shop",)),
    ):
        assert news(seen, listed=listed) == []
    gone = news_of(Changes("c", listed=Listed("services", "", "9", 7, 0, 1)), seen)
    assert [one.object.metadata.resource_version for one in gone.services] == ["9"]
    assert gone.endpoints == []


def test_endpoints_travel_with_the_memory():
    seen = Seen()
    news(seen, piece(1, endpoint("a")), kind="LISTED")
    other = Seen()
    other.merge(seen.encode())
    assert other.state("slice") == seen.state("slice")
