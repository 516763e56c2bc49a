"""The coders: registered, deterministic, and bytes that a savepoint may hold."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime

import apache_beam as beam
import msgspec
import pytest
from apache_beam.coders import registry

from transforms import coders
from transforms.coders import StructCoder, typed
from transforms.snapshot import Windows
from transforms.types import (
    Change,
    Changes,
    DeadLetter,
    Encoded,
    Event,
    EventSeries,
    EventSource,
    Gap,
    News,
    NewsChunk,
    ObjectMeta,
    ObjectReference,
    Position,
    Progress,
    Segment,
    Service,
    ServicePort,
    ServiceSpec,
    Target,
)
from transforms.watch import Span

TARGET = Target("prod", "events", "shop")
EVENT = Event(
    metadata=ObjectMeta(name="e", namespace="shop", uid="u", resource_version="7", labels={"b": "2", "a": "1"}),
    involved_object=ObjectReference(kind="Pod", name="web-0"),
    reason="BackOff",
    source=EventSource(component="kubelet"),
    last_timestamp=datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC),
    count=3,
    series=EventSeries(count=2),
)
SERVICE = Service(
    metadata=ObjectMeta(name="web", uid="s"), spec=ServiceSpec(ports=[ServicePort(port=80, target_port="http")])
)

# One value and its bytes in hexadecimal, for every struct with a coder. Other bytes would break savepoints: a new
# field goes to the end, with a default, and the bytes here must then still be decoded.
GOLDEN = [
    (Target("prod", "events"), "93a470726f64a66576656e7473a0"),
    (Position("9", False, time_us=5), "96a139c2a0a0a005"),
    (Position("", True, "t", "9", "3", 5), "96a0c3a174a139a13305"),
    (Span(Position("9", False)), "9296a139c2a0a0a000c2"),
    (Windows(7, True), "9207c3"),
    (
        Progress(TARGET, Position("9", False), 2, [("v1", "Pod")]),
        "9493a470726f64a66576656e7473a473686f7096a139c2a0a0a000029192a27631a3506f64",
    ),
    (Gap(TARGET, 1, 2, "why"), "9493a470726f64a66576656e7473a473686f700102a3776879"),
    (DeadLetter("prod", "events", "why", b"\x00\xff", 5), "95a470726f64a66576656e7473a3776879c40200ff05"),
    (Segment("p/00-0.pb.gz", 3, "abc", 70), "94ac702f30302d302e70622e677a03a361626346"),
    (Encoded(5, "u", "7", b"\x01"), "9405a175a137c40101"),
    (
        Changes("prod", [Change("ADDED", EVENT, 5)], [Change("LISTED", SERVICE, 6)]),
        "95a470726f649193a5414444454487a86d6574616461746185a46e616d65a165a96e616d657370616365a473686f70a37569"
        "64a175af7265736f7572636556657273696f6ea137a66c6162656c7382a161a131a162a132ae696e766f6c7665644f626a65"
        "637482a46b696e64a3506f64a46e616d65a57765622d30a6726561736f6ea74261636b4f6666a6736f7572636581a9636f6d"
        "706f6e656e74a76b7562656c6574ad6c61737454696d657374616d70d7ff3b9aca0069a42a40a5636f756e7403a673657269"
        "657381a5636f756e7402059193a64c495354454482a86d6574616461746182a46e616d65a3776562a3756964a173a4737065"
        "6381a5706f7274739182a4706f727450aa746172676574506f7274a4687474700690c0",
    ),
    (
        NewsChunk("prod", [News("ADDED", EVENT, 5, 2)], [News("MODIFIED", SERVICE, 6, 1, SERVICE)]),
        "94a470726f649195a5414444454487a86d6574616461746185a46e616d65a165a96e616d657370616365a473686f70a37569"
        "64a175af7265736f7572636556657273696f6ea137a66c6162656c7382a161a131a162a132ae696e766f6c7665644f626a65"
        "637482a46b696e64a3506f64a46e616d65a57765622d30a6726561736f6ea74261636b4f6666a6736f7572636581a9636f6d"
        "706f6e656e74a76b7562656c6574ad6c61737454696d657374616d70d7ff3b9aca0069a42a40a5636f756e7403a673657269"
        "657381a5636f756e74020502c09195a84d4f44494649454482a86d6574616461746182a46e616d65a3776562a3756964a173"
        "a47370656381a5706f7274739182a4706f727450aa746172676574506f7274a468747470060182a86d6574616461746182a4"
        "6e616d65a3776562a3756964a173a47370656381a5706f7274739182a4706f727450aa746172676574506f7274a46874747090",
    ),
]
REGISTERED = (Changes, DeadLetter, Encoded, Gap, NewsChunk, Position, Progress, Segment, Target)


@pytest.mark.parametrize(("value", "golden"), GOLDEN, ids=lambda v: type(v).__name__)
def test_bytes_are_those_that_savepoints_hold(value, golden):
    coder = StructCoder(type(value))
    assert coder.encode(value).hex() == golden
    assert coder.decode(bytes.fromhex(golden)) == value


def test_every_struct_with_a_coder_has_golden_bytes():
    assert {*REGISTERED, Span, Windows} == {type(value) for value, _ in GOLDEN}


def test_maps_are_encoded_in_one_order():
    other = msgspec.structs.replace(
        EVENT, metadata=msgspec.structs.replace(EVENT.metadata, labels={"a": "1", "b": "2"})
    )
    coder = StructCoder(Changes)
    assert coder.encode(Changes("c", [Change("ADDED", EVENT, 5)])) == coder.encode(
        Changes("c", [Change("ADDED", other, 5)])
    )
    assert coder.is_deterministic()


def test_bytes_with_a_field_less_are_decoded_to_its_default():
    assert StructCoder(Position).decode(msgspec.msgpack.encode(["9", False])) == Position("9", False)
    assert StructCoder(Target).decode(msgspec.msgpack.encode(["prod", "events"])) == Target("prod", "events")


def test_bytes_with_a_field_more_are_decoded_without_it():
    assert StructCoder(Target).decode(msgspec.msgpack.encode(["prod", "events", "", "later"])) == Target(
        "prod", "events"
    )


@pytest.mark.parametrize("struct", REGISTERED)
def test_beam_finds_the_coder_of_every_element_type(struct):
    coders.register()
    coders.register()  # twice is no error
    coder = registry.get_coder(struct)
    assert type(coder).__name__ == f"{struct.__name__}Coder"
    assert coder == StructCoder(struct)
    assert coder.to_type_hint() is struct


def test_coders_of_one_struct_are_equal_and_travel():
    for struct in REGISTERED:
        coder = registry.get_coder(struct)
        again = pickle.loads(pickle.dumps(coder))
        assert again == coder
        assert hash(again) == hash(coder)
    assert StructCoder(Gap) != StructCoder(Target)
    assert StructCoder(Gap) != "a coder"


def test_typed_names_the_element_type_of_each_output():
    coders.register()
    pipeline = beam.Pipeline()
    outputs = pipeline | beam.Create([1]) | beam.ParDo(lambda _: []).with_outputs("gaps", main="pairs")
    typed(outputs, gaps=Gap, pairs=tuple[str, bytes])
    assert outputs.gaps.element_type is Gap
    assert registry.get_coder(outputs.pairs.element_type).value_coder() == beam.coders.BytesCoder()
