"""`--runner DirectRunner`: micro-batches of the one graph on Beam's in-process FnApiRunner, each committed as a whole.

Beam's own DirectRunner does not stream a graph with a self-checkpointing source, keyed state and side inputs; a bounded
run of it is right and fast. So the readers watch all the time, and every batch interval, or as soon as enough is there,
an epoch runs the graph over what they hold; then its commit is written; then its additions become the carried state. An
epoch that fails leaves no trace but segments that the next start finds and takes in.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import EmbeddedPythonEnvironment

from runners.config import JobConfig
from runners.display import Display
from runners.history import Epoch, History
from runners.snapshots import SavedFacts
from transforms import codec, layout
from transforms.carried import Process
from transforms.dedup import news_of
from transforms.kube import Follower, KubeError, Reader, relist
from transforms.types import Gap, Position, Target
from transforms.watch import RESOURCES, FrameReader

_LOG = logging.getLogger(__name__)

_QUIET_S = 60.0  # a quiet cluster costs one commit a minute


@dataclasses.dataclass(frozen=True)
class EpochOutputs:
    """The PCollections that an epoch's commit is made of; the names are those of `Epoch.of`."""

    progress: beam.PCollection
    gaps: beam.PCollection
    seen: beam.PCollection
    segments: beam.PCollection
    sequences: beam.PCollection
    dead: beam.PCollection


Build = Callable[[beam.Pipeline, JobConfig, Process, Sequence[Target]], EpochOutputs]


class _CollectFn(beam.DoFn):
    def __init__(self, process: Process, name: str) -> None:
        self._process, self._name = process, name

    def setup(self) -> None:
        self._outputs = self._process.acquire().outputs[self._name]

    def process(self, element: Any) -> None:
        self._outputs.append(element)


class DirectJob:
    """Runs epochs until it is stopped, has run its time, or (once) has read what is there."""

    def __init__(self, config: JobConfig, build: Build) -> None:
        self._config, self._build = config, build
        self._process = Process(config.settings)
        self._carried = self._process.acquire()
        self._readers = self._carried.readers
        self._run_id = uuid.uuid4().hex[:12]
        self._histories: dict[str, History] = {}
        self._saved_facts: dict[str, SavedFacts] = {}
        self._targets: list[Target] = []
        self._stopping = False
        self._ends_at = time.monotonic() + config.run_for_s if config.run_for_s else float("inf")
        self._last_epoch = 0.0
        self._display = Display(self._readers)
        self._beam_options = PipelineOptions([], experiments=["beam_fn_api"])
        self._heartbeat = pathlib.Path(config.heartbeat_file) if config.heartbeat_file else None

    def run(self) -> None:
        """Returns when all that was read is committed. Raises what `main` turns into one line."""
        try:
            self._start()
            while self._wait():
                self._epoch()
            self._drain()
        finally:
            self._readers.close()
            self._display.close()

    def stop(self) -> None:
        """Ends the job after the epoch that runs. A sink that does not answer is given one batch interval more."""
        self._stopping = True
        self._readers.wake()
        timer = threading.Timer(self._config.batch_interval_s, self._carried.stopping.set)
        timer.daemon = True
        timer.start()

    # --- start ---

    def _start(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.unlink(missing_ok=True)  # a dead run's says nothing of this one
        self._carried.store.check()
        self._carried.store.create(layout.SCHEMA, codec.descriptor_set())
        errors = [error for cluster in self._config.clusters if (error := self._begin(cluster.name))]
        if len(errors) == len(self._config.clusters):
            raise errors[0]
        for error in errors:
            _LOG.warning("%s; the other clusters don't wait for it", error)
        self._carry_positions()
        for target in self._targets:
            self._readers.reader(target, RESOURCES[target.resource], self._carried.positions[target.key])
        self._graph = self._serialized_graph()

    def _begin(self, cluster: str) -> KubeError | None:
        """Opens one cluster's history; returns why the cluster can't be read, where it can't."""
        connection = self._readers.connection(cluster)
        targets = self._config.targets(cluster)
        identity, failed = "", None
        try:
            identity = connection.identity()
            self._check_rights([target for target in targets if target.resource == "events"])
        except KubeError as error:
            failed = error
        history = History(self._carried, cluster, identity, self._run_id, self._config.event_ttl_s)
        known = history.open()
        self._histories[cluster] = history
        saved = self._saved_facts[cluster] = SavedFacts(self._carried.store, cluster)
        if known and (facts := saved.load()) is not None:
            self._carried.know(cluster, facts)
        self._targets += targets
        if failed is None:
            if history.unknown_since_us is not None and self._config.delivery == "no-duplicates":
                for target in targets:
                    self._take_as_written(history, target)
            _LOG.info("%s: %s the history of %s", cluster, "goes on with" if known else "begins", connection.server)
        return failed

    def _check_rights(self, events: Sequence[Target]) -> None:
        """Raises KubeError when a cluster's events can be read nowhere."""
        refusals = []
        for target in events:
            try:
                connection = self._readers.connection(target.cluster)
                connection.get(RESOURCES["events"].path(target.namespace), {"limit": 1}).drain_conn()
            except KubeError as error:
                if not error.refused:
                    raise
                refusals.append(error)
        if len(refusals) == len(events):
            raise refusals[0]

    def _take_as_written(self, history: History, target: Target) -> None:
        """What is there now counts as written, as `no-duplicates` asks where it is not known; a gap says so."""
        resource = RESOURCES[target.resource]
        follower = Follower(self._readers.connection(target.cluster), target, resource, Position(), once=True)
        reader = FrameReader(target, 1, self._config.keep)
        for frame in follower.frames():
            if frame.kind == "page":
                for _, changes in reader.chunks(reader.decode(frame)[0], frame):
                    news_of(changes, self._carried.seen(target.cluster))
                history.positions[target.key] = frame.position
        why = "--delivery no-duplicates: it is not known what was written, so what was there counts as written"
        now_us = time.time_ns() // 1000
        self._carried.gaps[target.key] = Gap(target, history.unknown_since_us or 0, now_us, why)

    def _carry_positions(self) -> None:
        """Every target goes on at its committed position; `once` begins with a list: a watch can't say it caught up."""
        for target in self._targets:
            position = self._histories[target.cluster].positions.get(target.key, Position())
            if self._config.once and not self._last_epoch and not position.listing:
                position = relist(position)
            self._carried.positions[target.key] = position

    def _serialized_graph(self) -> Any:
        """The graph as Beam runs it, made once: what differs from epoch to epoch is carried, not wired."""
        pipeline = beam.Pipeline(runner=FnApiRunner(), options=self._beam_options)
        outputs = self._build(pipeline, self._config, self._process, self._targets)
        for field in dataclasses.fields(outputs):
            collected = getattr(outputs, field.name)
            _ = collected | f"Collect {field.name}" >> beam.ParDo(_CollectFn(self._process, field.name))
        return pipeline.to_runner_api(default_environment=EmbeddedPythonEnvironment.default())

    # --- epochs ---

    def _wait(self) -> bool:
        """Waits until an epoch is due; False when there is to be no more but what the readers hold."""
        if not self._last_epoch:
            ready = min(self._left(), self._config.batch_interval_s)
            self._readers.wait(lambda: self._due() or all(r.caught_up for r in self._sources()), ready)
        else:
            quiet = self._last_epoch + min(_QUIET_S, self._config.snapshot_interval_s) - time.monotonic()
            if self._readers.wait(lambda: self._due() or self._anything(), min(self._left(), quiet)):
                self._readers.wait(self._due, min(self._left(), self._config.batch_interval_s))
        if time.monotonic() >= self._ends_at:
            self._stopping = True
        ended = self._last_epoch and all(reader.done and not reader.waiting for reader in self._sources())
        return not self._stopping and not ended

    def _drain(self) -> None:
        """Stops reading, and runs epochs until nothing that was read is left."""
        for reader in self._sources():
            reader.close()
        while self._anything():
            self._epoch()
        self._save_facts(now=True)

    def _save_facts(self, *, now: bool = False) -> None:
        for cluster, saved in self._saved_facts.items():
            saved.save(self._carried.facts(cluster), now=now)

    def _sources(self) -> list[Reader]:
        return [reader for target in self._targets if (reader := self._readers.of(target)) is not None]

    def _due(self) -> bool:
        sources = self._sources()
        return self._stopping or any(r.full or r.error for r in sources) or all(r.done for r in sources)

    def _anything(self) -> bool:
        return any(reader.waiting or reader.error for reader in self._sources())

    def _left(self) -> float:
        return self._ends_at - time.monotonic()

    def _epoch(self) -> None:
        """One bounded run of the graph over what the readers hold, and its commits."""
        began_us = time.time_ns() // 1000
        if not self._last_epoch:
            for history in self._histories.values():
                history.check_alone()
        self._carried.outputs.clear()
        try:
            FnApiRunner().run_via_runner_api(self._graph, self._beam_options).wait_until_finish()
        except Exception as error:
            if self._carried.failure is not None:
                raise self._carried.failure from error
            raise
        epoch = Epoch.of(began_us, self._carried.outputs)
        for history in self._histories.values():
            history.commit(epoch)
        self._last_epoch = time.monotonic()
        self._carry_positions()
        self._save_facts()
        self._display.epoch(epoch)
        if self._heartbeat is not None:
            self._heartbeat.touch()
