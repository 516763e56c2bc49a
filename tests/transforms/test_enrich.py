"""News become records; what breaks the making of one becomes a dead letter, and the others are written."""

from __future__ import annotations

import json

import apache_beam as beam
import msgspec
import pytest
from apache_beam.testing.util import assert_that, equal_to
from kubehistory import record_pb2

from tests.transforms import estate, fakes
from transforms import coders, record
from transforms.batch import decode_records
from transforms.carried import Process, Settings
from transforms.enrich import Enrich, GapRecords, _EnrichStreamFn, enrich
from transforms.store import StoreConfig
from transforms.types import Gap, News, NewsChunk, ObjectMeta, Service, Target


def news(name: str, version: str = "900"):
    made = estate.event(10, estate.ref("Pod", "web-0"), version)
    metadata = msgspec.structs.replace(made.object.metadata, name=name, uid=f"uid-{name}")
    return msgspec.structs.replace(made, object=msgspec.structs.replace(made.object, metadata=metadata))


def a_service(name: str, kind: str = "ADDED"):
    metadata = ObjectMeta(name=name, namespace="shop", uid=f"uid-{name}", resource_version="5")
    return News(kind, Service(metadata=metadata), estate.at(10))


@pytest.fixture
def facts():
    cluster = estate.Estate()
    cluster.pod("web-0", 0)
    return cluster.facts


def test_a_chunk_s_events_and_services_become_records_in_its_order(facts):
    records, dead = enrich(NewsChunk("prod", [news("a"), news("b")], [a_service("web")]), facts)
    assert dead == []
    assert [one.uid for one in records] == ["uid-a", "uid-b", "uid-web"]
    first = record.decode(records[0].data)
    assert (first.kind, first.enrichment, first.pod.name) == (record_pb2.EVENT, record_pb2.FRESH, "web-0")
    assert record.decode(records[2].data).service_change.change == record_pb2.ServiceChange.ADDED


def test_an_event_about_an_object_that_nobody_knows_is_written_as_missing():
    records, dead = enrich(NewsChunk("prod", [news("a")]), estate.Facts())
    assert dead == []
    assert record.decode(records[0].data).enrichment == record_pb2.MISSING


def test_what_breaks_the_making_of_a_record_is_a_dead_letter_and_the_others_are_written(facts):
    broken = a_service("odd", "FROM_THE_FUTURE")
    records, (letter,) = enrich(NewsChunk("prod", [news("a")], [broken, a_service("web")]), facts)
    assert [one.uid for one in records] == ["uid-a", "uid-web"]
    assert (letter.cluster, letter.resource, letter.observed_us) == ("prod", "services", broken.observed_us)
    assert letter.reason == "not enriched: KeyError: 'FROM_THE_FUTURE'"
    assert json.loads(letter.data)["metadata"]["uid"] == "uid-odd"


def test_an_event_that_breaks_the_facts_is_a_dead_letter_with_its_bytes():
    class BrokenFacts:
        def __getattr__(self, name):
            raise RuntimeError(f"no {name}")

    records, dead = enrich(NewsChunk("prod", [news("a"), news("b")]), BrokenFacts())
    assert records == []
    assert [json.loads(letter.data)["metadata"]["name"] for letter in dead] == ["a", "b"]
    assert {letter.resource for letter in dead} == {"events"}
    assert dead[0].reason.startswith("not enriched: RuntimeError: no ")


def test_a_dead_letter_s_bytes_are_an_object_that_can_be_decoded_again(facts):
    broken = a_service("odd", "FROM_THE_FUTURE")
    _, (letter,) = enrich(NewsChunk("prod", [], [broken]), facts)
    assert msgspec.json.decode(letter.data, type=Service) == broken.object


def test_the_transform_keys_records_by_shard_and_puts_dead_letters_aside(tmp_path):
    coders.register()
    process = Process(Settings((), StoreConfig(str(tmp_path))))
    carried = process.acquire()  # as the runner does: it lives while somebody holds it
    chunks = [
        ("prod/00", NewsChunk("prod", [news("a")])),
        ("prod/01", NewsChunk("prod", [], [a_service("odd", "FROM_THE_FUTURE")])),
    ]
    with fakes.epoch() as p:
        current = p | "Current" >> beam.Create(["refreshed"])
        outputs = p | beam.Create(chunks) | Enrich(process, beam.pvalue.AsSingleton(current))
        uids = outputs.records | beam.Map(lambda kv: (kv[0], [one.uid for one in decode_records(kv[1])]))
        assert_that(uids, equal_to([("prod/00", ["uid-a"])]), label="records")
        assert_that(outputs.dead | beam.Map(lambda letter: letter.resource), equal_to(["services"]), label="dead")
    assert carried.outputs == {}


def test_a_gap_becomes_a_record_of_its_cluster_filed_under_its_end():
    coders.register()
    gaps = [Gap(Target("prod", "events"), 5, 7, "away"), Gap(Target("test", "services", "shop"), 5, 0, "forbidden")]

    def shown(element):
        key, chunk = element
        (one,) = decode_records(chunk)
        gap = record.decode(one.data).gap
        return key, one.time_us, gap.from_us, gap.to_us, gap.why, gap.resource, gap.namespace

    with fakes.epoch() as p:
        assert_that(
            p | beam.Create(gaps) | GapRecords() | beam.Map(shown),
            equal_to(
                [
                    ("prod/00", 7, 5, 7, "away", "events", ""),
                    ("test/00", 5, 5, 5, "forbidden", "services", "shop"),
                ]
            ),
        )


def test_a_stream_s_facts_come_with_the_window_and_are_decoded_once(tmp_path, facts):
    process = Process(Settings((), StoreConfig(str(tmp_path))))
    carried = process.acquire()
    function = _EnrichStreamFn(process)
    function.setup()

    def enrichment(current: dict[str, bytes]) -> int:
        ((key, chunk),) = function.process(("prod/00", NewsChunk("prod", [news("a")])), current)
        assert key == "prod/00"
        return record.decode(decode_records(chunk)[0].data).enrichment

    snapshot = facts.encode()
    assert enrichment({"prod": snapshot}) == record_pb2.FRESH
    decoded = function._facts("prod", {"prod": snapshot})
    assert function._facts("prod", {"prod": snapshot}) is decoded
    assert function._facts("prod", {"prod": estate.Facts().encode()}) is not decoded
    assert enrichment({}) == record_pb2.MISSING  # nothing in the window: what this worker knows itself
    carried.facts("prod").apply(
        "pods",
        "LISTED",
        estate._decoded("pods", {"metadata": {"name": "web-0", "namespace": "shop", "uid": "uid-web-0"}}),
        0,
    )
    assert enrichment({}) == record_pb2.FRESH
