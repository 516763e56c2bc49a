"""The streaming graph as a runner gets it: what Flink's portable runner supports, and names and bytes that stay.

What is checked against is Beam's own source, of apache/beam:
- runners/flink/.../FlinkStreamingPortablePipelineTranslator.java (`knownUrns`, side inputs, uids)
- runners/flink/.../ExecutableStageDoFnOperator.java and
  runners/java-fn-execution/.../state/StateRequestHandlers.java (state, side inputs)
- .../construction/graph/FusedPipeline.java (the names of the stages)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
import pytest
from apache_beam import coders as beam_coders
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2 as pb
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.utils.timestamp import Timestamp

from pipeline.graph import build
from pipeline.options import config_of, parse
from transforms import dedup, write
from transforms.batch import decode_records, encode_records
from transforms.carried import Process
from transforms.coders import StructCoder
from transforms.seen import Seen
from transforms.snapshot import Windows
from transforms.types import (
    Changes,
    DeadLetter,
    Encoded,
    Gap,
    NewsChunk,
    ObjectMeta,
    Position,
    Progress,
    Segment,
    Service,
    Target,
)
from transforms.watch import RESOURCES, Span, WatermarkCoder

GOLDEN = Path(__file__).parents[1] / "golden"

# FlinkStreamingPortablePipelineTranslator.knownUrns: what the runner does itself, with what is inside it left out.
NATIVE = {"beam:transform:reshuffle:v1"}
# The other URNs that it translates, or that the SDK's workers execute within a stage. `window_into` is among the
# latter: the translator does not know it, and the fuser puts it into the stages of its environment.
PRIMITIVES = {
    "beam:transform:impulse:v1",
    "beam:transform:flatten:v1",
    "beam:transform:group_by_key:v1",
    "beam:transform:pardo:v1",
    "beam:transform:window_into:v1",
}
# ExecutableStageDoFnOperator.BagUserStateFactory is the only user state: StateRequestHandlers refuses every state key
# but BAG_USER_STATE ("Unsupported ... type"). The Python SDK keeps these kinds of state in bags.
STATES = {"bag_spec", "read_modify_write_spec", "set_spec", "combining_spec"}
BAG = "beam:user_state:bag:v1"
# StateRequestHandlers.createHandler: "Unsupported access pattern for side input" for all others.
ACCESS = {"beam:side_input:iterable:v1", "beam:side_input:multimap:v1"}
REQUIREMENTS = {"beam:requirement:pardo:stateful:v1", "beam:requirement:pardo:splittable_dofn:v1"}


def proto_of(*clusters: str, **more: str) -> pb.Pipeline:
    """The pipeline that a submission with EXTERNAL workers hands over, with these clusters."""
    flags = [f"--cluster={name}={name}" for name in clusters] if len(clusters) > 1 else [f"--cluster={clusters[0]}"]
    config = config_of(parse(["--output=/history", *flags, *(f"--{key}={value}" for key, value in more.items())]))
    options = PipelineOptions(["--streaming", "--environment_type=EXTERNAL", "--environment_config=localhost:50000"])
    p = beam.Pipeline(options=options)
    targets = [Target(cluster, resource) for cluster in clusters for resource in RESOURCES]
    build(p, config, Process(config.settings), targets, streaming=True)
    return p.to_runner_api(default_environment=beam.transforms.environments.ExternalEnvironment("localhost:50000"))


@pytest.fixture(scope="module")
def proto() -> pb.Pipeline:
    return proto_of("prod")


def executed(proto: pb.Pipeline) -> Iterator[pb.PTransform]:
    """The transforms that Flink runs or has run: those without parts, outside of what it replaces by its own."""

    def below(ids: Any) -> Iterator[pb.PTransform]:
        for id_ in ids:
            transform = proto.components.transforms[id_]
            if transform.spec.urn in NATIVE:
                continue
            if transform.subtransforms:
                yield from below(transform.subtransforms)
            else:
                yield transform

    yield from below(proto.root_transform_ids)


def pardos(proto: pb.Pipeline) -> dict[str, pb.ParDoPayload]:
    return {
        transform.unique_name: pb.ParDoPayload.FromString(transform.spec.payload)
        for transform in executed(proto)
        if transform.spec.urn == "beam:transform:pardo:v1"
    }


# --- what Flink supports ----------------------------------------------------------------------


def test_every_step_is_one_that_flink_translates_or_a_worker_executes(proto):
    assert {transform.spec.urn for transform in executed(proto)} <= PRIMITIVES


def test_nothing_more_is_required_than_state_and_splitting(proto):
    assert set(proto.requirements) <= REQUIREMENTS
    for name, pardo in pardos(proto).items():
        assert not pardo.requests_finalization, name
        assert not pardo.requires_stable_input, name
        assert not pardo.requires_time_sorted_input, name
        assert not pardo.on_window_expiration_timer_family_spec, name


def test_state_is_what_a_bag_can_hold(proto):
    specs = {(name, id_): spec for name, pardo in pardos(proto).items() for id_, spec in pardo.state_specs.items()}
    assert {id_ for _, id_ in specs} == {"added", "token", "values", "count", "found", "next"}
    for spec in specs.values():
        assert spec.WhichOneof("spec") in STATES
        assert spec.protocol.urn == BAG


def test_timers_are_of_event_time_or_processing_time_and_each_family_has_one(proto):
    families = {
        id_: spec.time_domain for pardo in pardos(proto).values() for id_, spec in pardo.timer_family_specs.items()
    }
    # The SDK makes a family "ts-<name>" of every TimerSpec, with one timer in it.
    assert families == {
        "ts-buffering_end": pb.TimeDomain.PROCESSING_TIME,
        "ts-window_end": pb.TimeDomain.EVENT_TIME,
    }


def test_the_side_input_is_iterable_and_its_window_is_the_main_input_s(proto):
    """getSideInputIdToPCollectionViewMap takes the window function's own mapping ("TODO: support custom mapping fn").

    And a stage's side inputs get one stream each by their local name, so one transform of a stage may have some.
    """
    with_side_inputs = {name: pardo.side_inputs for name, pardo in pardos(proto).items() if pardo.side_inputs}
    assert list(with_side_inputs) == ["Enrich/Enrich/ParDo(_EnrichStreamFn)"]
    (side_input,) = with_side_inputs.popitem()[1].values()
    assert side_input.access_pattern.urn in ACCESS
    mapping = pickler.loads(side_input.window_mapping_fn.payload)
    window_fn = beam.window.FixedWindows(60)
    default = beam.transforms.sideinputs.default_window_mapping_fn(window_fn)
    assert mapping.__code__.co_code == default.__code__.co_code
    for start in (0, 60, 1_700_000_040):
        window = beam.window.IntervalWindow(start, start + 60)
        assert mapping(window) == window


def test_main_and_side_input_have_the_same_windows(proto):
    transform = next(t for t in executed(proto) if t.unique_name.endswith("ParDo(_EnrichStreamFn)"))
    windows = {
        proto.components.windowing_strategies[proto.components.pcollections[id_].windowing_strategy_id].window_fn.urn
        for id_ in transform.inputs.values()
    }
    assert windows == {"beam:window_fn:fixed_windows:v1"}


def test_what_goes_into_state_is_keyed(proto):
    """translateExecutableStage: "Stateful stage requires KV input" of a stage, keyed by the encoded key."""
    for transform in executed(proto):
        if transform.unique_name in pardos(proto) and pardos(proto)[transform.unique_name].state_specs:
            (input_,) = transform.inputs.values()
            coder = proto.components.coders[proto.components.pcollections[input_].coder_id]
            assert coder.spec.urn == "beam:coder:kv:v1"
            assert proto.components.coders[coder.component_coder_ids[0]].spec.urn == "beam:coder:string_utf8:v1"


# --- no pickles -------------------------------------------------------------------------------


def leaves(coder: beam_coders.Coder) -> Iterator[beam_coders.Coder]:
    parts = coder._get_component_coders()
    if not parts or isinstance(coder, beam_coders.FastPrimitivesCoder):
        yield coder
    for part in parts if not isinstance(coder, beam_coders.FastPrimitivesCoder) else ():
        yield from leaves(part)


def coders_of(proto: pb.Pipeline) -> dict[str, beam_coders.Coder]:
    """The coders of the PCollections between steps, of the restrictions and of the state, by what uses them."""
    components, used = proto.components, {}
    for transform in executed(proto):
        for id_ in [*transform.inputs.values(), *transform.outputs.values()]:
            used[components.pcollections[id_].unique_name] = components.pcollections[id_].coder_id
    for name, pardo in pardos(proto).items():
        if pardo.restriction_coder_id:
            used[f"{name}: restriction"] = pardo.restriction_coder_id
        for id_, spec in pardo.state_specs.items():
            kind = getattr(spec, spec.WhichOneof("spec"))
            used[f"{name}: {id_}"] = next(
                value for field, value in kind.ListFields() if field.name.endswith("coder_id")
            )
    context = PipelineContext(components)
    return {name: context.coders.get_by_id(id_) for name, id_ in used.items()}


def test_no_element_no_restriction_and_no_state_is_pickled(proto):
    pickling = (beam_coders.PickleCoder, beam_coders.DillCoder, beam_coders.FastPrimitivesCoder)
    found = coders_of(proto)
    # GroupIntoBatches takes FastPrimitivesCoder for its state, whatever its elements are; which pickles what is no
    # primitive. That is why chunks are handed over as bytes: what is in that state is not pickled.
    batches = "BatchByPartition/GroupIntoBatches/ParDo(_GroupIntoBatchesDoFn)"
    assert found.pop(f"{batches}: count").encode(3).hex() == "0103"
    assert found.pop(f"{batches}: values").encode(("p/00", b"\x91")).hex() == "0602" + "0404702f3030" + "030191"
    for name, coder in found.items():
        for leaf in leaves(coder):
            # FastPrimitivesCoder pickles what is no primitive: an unknown element type gets it.
            assert not isinstance(leaf, pickling), (name, coder)


def test_each_of_our_coders_is_deterministic(proto):
    ours = [leaf for coder in coders_of(proto).values() for leaf in leaves(coder) if isinstance(leaf, StructCoder)]
    assert {coder.to_type_hint() for coder in ours} >= {
        Target,
        Changes,
        NewsChunk,
        DeadLetter,
        Gap,
        Segment,
        Span,
        Windows,
    }
    assert all(coder.is_deterministic() for coder in ours)


# --- names ------------------------------------------------------------------------------------


def names_of(proto: pb.Pipeline) -> str:
    """The names that Flink makes uids of, a line each.

    A GroupByKey's uid is its transform's name, a side input's is its transform's with the local name; a stage's is its
    input PCollection's name, "<length><label>.<output>", and the environment's URN
    (FusedPipeline.getEnvironmentExecutedTransforms). So the names of PCollections are as much part of a savepoint as
    those of the steps.
    """
    steps = sorted(f"step {transform.unique_name}" for transform in executed(proto))
    outputs = sorted(
        f"output {proto.components.pcollections[id_].unique_name}"
        for transform in executed(proto)
        for id_ in transform.outputs.values()
    )
    return "\n".join([*steps, *outputs, *sorted(f"environment {e.urn}" for e in environments(proto).values())]) + "\n"


def environments(proto: pb.Pipeline) -> Mapping[str, pb.Environment]:
    return {transform.environment_id: proto.components.environments[transform.environment_id]
            for transform in executed(proto) if transform.environment_id}  # fmt: skip


def test_names_are_those_of_the_savepoints_that_there_are(proto):
    golden = GOLDEN / "streaming_names.txt"
    assert names_of(proto) == golden.read_text(), f"a step was renamed: a savepoint would lose its state; see {golden}"


@pytest.mark.parametrize("clusters", [("prod", "dev"), ("a", "b", "c")])
def test_names_don_t_depend_on_the_parameters(proto, clusters):
    other = proto_of(
        *clusters, shards="4", batch_interval="3", batch_size="7", snapshot_interval="5", reasons="BackOff"
    )
    assert names_of(other) == names_of(proto)


def test_names_are_unique_and_none_is_made_of_a_lambda_or_a_line_of_a_file(proto):
    names = [transform.unique_name for transform in executed(proto)]
    assert not [name for name, times in Counter(names).items() if times > 1]
    assert not [name for name in names if re.search(r"lambda|\.py|:\d|0x", name)]


# --- bytes ------------------------------------------------------------------------------------

MEMORY = (
    "00000020"  # 32 bytes of entries
    "000000000000000000000000000000ff000000000000010200000003000000" + "07"  # UID, version, count, when (s)
    "93808091a173"  # Services, endpoints, and what is gone, in msgpack
)


def memory() -> Seen:
    seen = Seen(Seen())
    seen.saw_event("00000000-0000-0000-0000-0000000000ff", 258, 3, 7_000_000)
    seen.saw_state("s", None)
    return seen


RECORDS = [Encoded(1_700_000_000_000_000, "u", "9", b"\x08\x01")]
POSITION = Position("100", True, "token", "120", "90", 1_700_000_000_000_000)

STATE = [
    (dedup._DeduplicateFn.ADDED.coder, memory().encode(), MEMORY),
    (dedup._DeduplicateFn.TOKEN.coder, bytes(range(16)), "000102030405060708090a0b0c0d0e0f"),
    (write._WriteFn.NEXT.coder, 300, "ac02"),
    (write._WriteFn.FOUND.coder, 7, "07"),
    (beam_coders.BytesCoder(), encode_records(RECORDS), "9194cf00060a24181e4000a175a139c4020801"),
    (StructCoder(Span), Span(POSITION), "9296a3313030c3a5746f6b656ea3313230a23930cf00060a24181e4000c2"),
    (StructCoder(Span), Span(Position(), True), "9296a0c3a0a0a000c3"),
    (StructCoder(Windows), Windows(28333333, False), "92ce01b05515c2"),
    (WatermarkCoder(), Timestamp(micros=1_700_000_000_123_456), "00060a2418202240"),
    (WatermarkCoder(), None, ""),
]


@pytest.mark.parametrize(("coder", "value", "golden"), STATE)
def test_what_a_savepoint_holds_has_these_bytes(coder, value, golden):
    assert coder.encode(value).hex() == golden
    assert coder.decode(bytes.fromhex(golden)) == value


def test_the_bytes_of_a_memory_and_of_a_batch_say_what_they_said():
    seen = Seen()
    seen.merge(bytes.fromhex(MEMORY))
    assert seen.event("00000000-0000-0000-0000-0000000000ff") == (258, 3)
    assert decode_records(bytes.fromhex("9194cf00060a24181e4000a175a139c4020801")) == RECORDS


@pytest.mark.parametrize(
    "struct",
    [Span, Windows, Position, Target, Changes, NewsChunk, Encoded, DeadLetter, Progress, Segment, Gap, Service],
)
def test_old_bytes_are_decoded_after_a_field_was_added_at_the_end(struct):
    """As a later version would: the same fields and one more, with a default."""
    later = msgspec.defstruct(
        struct.__name__,
        [("added_later", int, 7)],
        bases=(struct,),
        frozen=True,
        array_like=struct.__struct_config__.array_like,
        gc=struct.__struct_config__.gc,
        rename="camel" if struct is Service else None,
        kw_only=struct is Service,
    )
    value = example(struct)
    old = StructCoder(struct).encode(value)
    decoded = StructCoder(later).decode(old)
    assert decoded.added_later == 7
    assert {name: getattr(decoded, name) for name in struct.__struct_fields__} == {
        name: getattr(value, name) for name in struct.__struct_fields__
    }
    # And back, as when a new version is taken back: what an old one does not know it passes over.
    assert StructCoder(struct).decode(StructCoder(later).encode(decoded)) == value


def example(struct: type) -> Any:
    """A value of a struct in which no field is its default, as far as that matters to its bytes."""
    position = Position("100", False, "", "", "", 5)
    target = Target("prod", "events")
    return {
        Span: lambda: Span(position),
        Windows: lambda: Windows(7),
        Position: lambda: position,
        Target: lambda: target,
        Changes: lambda: Changes("prod"),
        NewsChunk: lambda: NewsChunk("prod"),
        Encoded: lambda: RECORDS[0],
        DeadLetter: lambda: DeadLetter("prod", "events", "why", b"{", 5),
        Progress: lambda: Progress(target, position, 3, [("v1", "Pod")]),
        Segment: lambda: Segment("path", 1, "sum", 2),
        Gap: lambda: Gap(target, 1, 2, "why"),
        Service: lambda: Service(metadata=ObjectMeta(name="web")),
    }[struct]()
