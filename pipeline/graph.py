"""The graph: one function, for every runner. It reads like the diagram in ARCHITECTURE.md."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam

from runners.config import JobConfig
from runners.direct import EpochOutputs
from transforms import coders
from transforms.batch import BatchByPartition
from transforms.carried import Process
from transforms.dedup import Deduplicate
from transforms.enrich import Enrich, GapRecords
from transforms.snapshot import ObjectSnapshots
from transforms.types import Target
from transforms.watch import WatchResources
from transforms.write import WriteBatches, WriteDeadLetters


def build(p: beam.Pipeline, config: JobConfig, process: Process, targets: Sequence[Target]) -> EpochOutputs:
    """Wires the stages over what is watched; an epoch's outputs are what its commit is made of."""
    coders.register()
    watched = (
        p
        | "Targets" >> beam.Create(list(targets))
        | "WatchResources" >> WatchResources(process, config.shards, config.keep, limit=config.epoch_limit)
    )
    current = watched.progress | "ObjectSnapshots" >> ObjectSnapshots(process, config.namespaces)
    deduplicated = watched.changes | "Deduplicate" >> Deduplicate(process)
    enriched = deduplicated.news | "Enrich" >> Enrich(process, beam.pvalue.AsSingleton(current))
    written = (
        (enriched.records, watched.gaps | "GapRecords" >> GapRecords())
        | "RecordsAndGaps" >> beam.Flatten()
        | "BatchByPartition" >> BatchByPartition(config.batch_size, config.batch_interval_s)
        | "WriteBatches" >> WriteBatches(process, config.batch_size)
    )
    dead = (
        (watched.dead, enriched.dead)
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
