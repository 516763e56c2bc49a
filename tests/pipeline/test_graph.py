"""The graph as Beam sees it: labels that stay, element types that are known, and no coder that pickles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import coders as beam_coders
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type

from pipeline.graph import build
from runners.config import JobConfig
from transforms.carried import Process, Settings
from transforms.kube import Cluster
from transforms.store import StoreConfig
from transforms.types import Gap, Progress, Segment, Target
from transforms.watch import RESOURCES

LABELS = Path(__file__).parents[1] / "golden" / "labels.txt"
PICKLING = (beam_coders.FastPrimitivesCoder, beam_coders.DeterministicFastPrimitivesCoderV2, beam_coders.PickleCoder)
# Steps of Beam's own inside ours: it keys by None, makes an element of nothing, spreads a handful of targets.
BEAM_S_OWN = ("ObjectSnapshots/Gather/", "Targets/Spread/", "Clusters/Spread/")
# Beam's own labels with a line number of its source in them: they move with Beam's version.
UNSTABLE = ("ObjectSnapshots/Gather/",)


class Graph:
    """The epoch's graph, or the stream's, and its proto."""

    def __init__(self, streaming: bool, shards: int = 1) -> None:
        clusters, store = (Cluster("prod"),), StoreConfig("/history")
        settings = Settings(clusters, store)
        config = JobConfig("DirectRunner", clusters, store, shards=shards, settings=settings)
        targets = [Target("prod", resource) for resource in RESOURCES]
        self.pipeline = beam.Pipeline(options=PipelineOptions([]))
        self.outputs = build(self.pipeline, config, Process(settings), targets, streaming)
        self.proto, context = self.pipeline.to_runner_api(return_context=True)
        self.components = self.proto.components
        self._coders = context.coders

    @property
    def labels(self) -> list[str]:
        return [transform.unique_name for transform in self.components.transforms.values() if transform.unique_name]

    @property
    def pcollections(self) -> Iterator[tuple[str, Any]]:
        """(label of the step, coder) of each PCollection."""
        for transform in self.components.transforms.values():
            for collection in transform.outputs.values():
                coder = self.components.pcollections[collection].coder_id
                yield transform.unique_name, self._coders.get_by_id(coder)

    @property
    def pardos(self) -> Iterator[tuple[str, beam_runner_api_pb2.ParDoPayload]]:
        for transform in self.components.transforms.values():
            if transform.spec.urn == "beam:transform:pardo:v1":
                yield (
                    transform.unique_name,
                    beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload),
                )


@pytest.fixture(scope="module")
def epoch() -> Graph:
    return Graph(streaming=False)


@pytest.fixture(scope="module")
def stream() -> Graph:
    return Graph(streaming=True)


@pytest.fixture(params=["epoch", "stream"])
def graph(request) -> Graph:
    return request.getfixturevalue(request.param)


def inner(coder: Any) -> Iterator[Any]:
    """A coder and those that it is made of."""
    yield coder
    for component in getattr(coder, "_coders", None) or coder._get_component_coders():
        yield from inner(component)


def stable(graph: Graph) -> list[str]:
    return sorted(label for label in graph.labels if " at " not in label and not label.startswith("ref_"))


def test_labels_of_an_epoch_stay(epoch):
    """After a change that is meant, write what is found to the file. (A stream has a file of its own.)"""
    assert stable(epoch) == LABELS.read_text().splitlines()


def test_labels_are_unique_and_only_beam_s_own_have_a_line_number(graph):
    assert len(graph.labels) == len(set(graph.labels))
    assert [label for label in graph.labels if " at " in label and not label.startswith(UNSTABLE)] == []


def test_labels_do_not_depend_on_the_settings(graph):
    assert sorted(Graph("SnapshotWindow" in graph.labels, shards=8).labels) == sorted(graph.labels)


def test_no_pcollection_is_pickled(graph):
    pickled = [
        label
        for label, coder in graph.pcollections
        if any(isinstance(part, PICKLING) for part in inner(coder)) and not label.startswith(BEAM_S_OWN)
    ]
    assert pickled == []


def test_what_beam_keys_by_none_holds_our_elements_by_their_own_coder(epoch):
    pairs = [coder for label, coder in epoch.pcollections if label == "ObjectSnapshots/Gather/KeyWithVoid"]
    assert [type(coder.value_coder()).__name__ for coder in pairs] == ["ProgressCoder"]


def test_the_element_type_of_every_output_is_known(graph):
    expected = {
        "progress": Progress,
        "gaps": Gap,
        "seen": tuple[str, bytes],
        "segments": Segment,
        "sequences": tuple[str, int],
        "dead": tuple[str, int],
    }
    found = {field.name: getattr(graph.outputs, field.name).element_type for field in dataclasses.fields(graph.outputs)}
    assert found == {name: convert_to_beam_type(kind) for name, kind in expected.items()}


def test_no_step_of_ours_gives_any(graph):
    unknown: list[str] = []

    class Visitor(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node):
            for output in node.outputs.values():
                if output.element_type is beam.typehints.Any and not node.full_label.startswith(BEAM_S_OWN):
                    unknown.append(node.full_label)

    graph.pipeline.visit(Visitor())
    assert unknown == []


def test_timers_of_an_epoch_have_a_name_each(epoch):
    """FnApiRunner buffers timers by the name of their family: two steps of one stage must not share one."""
    families = [family for _, payload in epoch.pardos for family in payload.timer_family_specs]
    assert len(families) == len(set(families))


def test_state_and_timers_are_of_the_kinds_that_flink_has(stream):
    for label, payload in stream.pardos:
        for spec in payload.state_specs.values():
            kind = spec.WhichOneof("spec")
            assert kind in ("read_modify_write_spec", "bag_spec", "combining_spec", "set_spec"), label
        for side in payload.side_inputs.values():
            assert side.access_pattern.urn in ("beam:side_input:iterable:v1", "beam:side_input:multimap:v1"), label


def test_the_source_is_splittable(graph):
    restrictions = {
        label: payload.restriction_coder_id for label, payload in graph.pardos if payload.restriction_coder_id
    }
    assert "WatchResources/Read/ParDo(_WatchFn)" in restrictions


def test_no_credential_is_in_the_graph(tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text('{"users": [{"name": "u", "user": {"token": "s3cr3t"}}]}')
    clusters, store = (Cluster("prod", str(kubeconfig)),), StoreConfig("/history")
    settings = Settings(clusters, store)
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    build(
        pipeline,
        JobConfig("DirectRunner", clusters, store, settings=settings),
        Process(settings),
        [Target("prod", "events")],
    )
    assert b"s3cr3t" not in pipeline.to_runner_api().SerializeToString()
