"""The job's settings, read once from the options into a frozen value that the graph and the runners share."""

from __future__ import annotations

import dataclasses

from transforms.carried import Settings
from transforms.kube import Cluster
from transforms.store import StoreConfig
from transforms.types import Target
from transforms.watch import RESOURCES, Filter


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """All that was asked for. Seconds where a name ends in _s or says interval; counts elsewhere.

    namespaces: () is all. delivery: "no-loss" or "no-duplicates". run_for_s: 0 is for ever.
    heartbeat_file: what a DirectRunner touches after each commit; "" is nothing.
    """

    runner: str
    clusters: tuple[Cluster, ...]
    store: StoreConfig
    namespaces: tuple[str, ...] = ()
    keep: Filter = Filter()
    batch_size: int = 1000
    batch_interval_s: float = 10.0
    snapshot_interval_s: float = 60.0
    run_for_s: float = 0.0
    once: bool = False
    delivery: str = "no-loss"
    shards: int = 1
    epoch_limit: int = 15_000
    debug: bool = False
    heartbeat_file: str = ""
    settings: Settings = dataclasses.field(kw_only=True)

    def targets(self, cluster: str) -> list[Target]:
        """What is watched of one cluster: each resource of the source, in each namespace."""
        return [
            Target(cluster, resource, namespace) for resource in RESOURCES for namespace in self.namespaces or ("",)
        ]

    @property
    def event_ttl_s(self) -> float:
        """How long the API server keeps an Event."""
        return self.settings.timing.event_ttl_s
