"""The graph: one function, for every runner. It reads like the diagram in ARCHITECTURE.md."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows, GlobalWindows

from runners.config import JobConfig
from runners.direct import EpochOutputs
from transforms import coders
from transforms.batch import BatchByPartition
from transforms.carried import Process
from transforms.dedup import Deduplicate
from transforms.elements import Elements
from transforms.enrich import Enrich, GapRecords
from transforms.snapshot import ObjectSnapshots, SnapshotWindows
from transforms.types import Target
from transforms.watch import WatchResources
from transforms.write import WriteBatches, WriteDeadLetters


def build(
    p: beam.Pipeline, config: JobConfig, process: Process, targets: Sequence[Target], streaming: bool = False
) -> EpochOutputs:
    """Wires the stages over what is watched; an epoch's outputs are what its commit is made of.

    streaming: the source goes on for ever, state is Beam's, snapshots come in windows, and a batch closes by its age.
    """
    coders.register()
    watched = (
        p
        | "Targets" >> Elements(targets, Target)
        | "WatchResources"
        >> WatchResources(process, config.shards, config.keep, bounded=not streaming, limit=config.epoch_limit)
    )
    deduplicated = watched.changes | "Deduplicate" >> Deduplicate(process, streaming, 2 * config.event_ttl_s)
    if streaming:
        snapshots = (
            p
            | "Clusters" >> Elements([cluster.name for cluster in config.clusters], str)
            | "ObjectSnapshots" >> SnapshotWindows(process, config.namespaces, config.snapshot_interval_s)
        )
        news = deduplicated.news | "SnapshotWindow" >> beam.WindowInto(FixedWindows(config.snapshot_interval_s))
        enriched = news | "Enrich" >> Enrich(process, beam.pvalue.AsDict(snapshots), streaming=True)
        records = enriched.records | "RecordsGlobally" >> beam.WindowInto(GlobalWindows())
        unenriched = enriched.dead | "DeadLettersGlobally" >> beam.WindowInto(GlobalWindows())
    else:
        current = watched.progress | "ObjectSnapshots" >> ObjectSnapshots(process, config.namespaces)
        enriched = deduplicated.news | "Enrich" >> Enrich(process, beam.pvalue.AsSingleton(current))
        records, unenriched = enriched.records, enriched.dead
    max_age_s = config.batch_interval_s if streaming else None
    written = (
        (records, watched.gaps | "GapRecords" >> GapRecords())
        | "RecordsAndGaps" >> beam.Flatten()
        | "BatchByPartition" >> BatchByPartition(config.batch_size, config.batch_interval_s, max_age_s, streaming)
        | "WriteBatches" >> WriteBatches(process, config.batch_size)
    )
    dead = (
        (watched.dead, unenriched)
        | "AllDeadLetters" >> beam.Flatten()
        | "WriteDeadLetters" >> WriteDeadLetters(process)
    )
    return EpochOutputs(
        progress=watched.progress,
        gaps=watched.gaps,
        seen=deduplicated.seen,
        segments=written.segments,
        sequences=written.sequences,
        dead=dead,
    )
