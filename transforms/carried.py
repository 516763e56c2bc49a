"""What one worker process keeps between bundles, and in micro-batches from epoch to epoch: connections and memory.

A DoFn is unpickled anew for each run, so it can keep nothing itself. It holds a `Process`, which is picklable and names
no credential, and acquires the one `Carried` of its process through Beam's `Shared`. On Flink nothing but connections
and what can be read again is in it: state is Beam state there.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator
from typing import Any

from apache_beam.utils.shared import Shared

from transforms.facts import Facts
from transforms.kube import Cluster, Readers, Timing
from transforms.seen import Memory, Seen
from transforms.snapshot_reader import SnapshotReader
from transforms.store import Retrying, Store, StoreConfig
from transforms.types import Gap, Position

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a worker needs to know to connect; part of the job graph."""

    clusters: tuple[Cluster, ...]
    store: StoreConfig
    timing: Timing = Timing()
    once: bool = False
    selector: str = ""
    buffer: int = 5_000
    page_size: int = 1000


class Carried:
    """One process's connections, what the runner carries from epoch to epoch, and what the epoch put out for it.

    positions: by target key, where a target is read from. commits: in micro-batches, by cluster, the number of the
    commit that is to name what is written now. sequences: by "<partition>/<shard>", the next free segment number.
    written: identities that a dead run wrote after the newest commit, which a replay must not write again. memories:
    what a stream's bundles remember, by shard key (the truth is the state). outputs: by name. failure: the error that
    ended an epoch, as it was before Beam wrapped it.
    """

    def __init__(self, settings: Settings) -> None:
        self.readers = Readers(
            settings.clusters,
            settings.timing,
            limit=settings.buffer,
            page_size=settings.page_size,
            once=settings.once,
            selector=settings.selector,
        )
        self.stopping = threading.Event()
        self.store: Store = Retrying(settings.store.open(), report=_LOG.warning, stop=self.stopping.is_set)
        self.snapshots: dict[str, SnapshotReader] = {}
        self.positions: dict[str, Position] = {}
        self.gaps: dict[str, Gap] = {}
        self.commits: dict[str, int] = {}
        self.sequences: dict[str, int] = {}
        self.written: set[tuple[str, str]] = set()
        self.memories: dict[str, Memory] = {}
        self.outputs: dict[str, list[Any]] = collections.defaultdict(list)
        self.failure: Exception | None = None
        self.facts_lock = threading.RLock()
        self._facts: dict[str, Facts] = {}
        self._seen: dict[str, Seen] = {}
        self._retention_us = int(2 * settings.timing.event_ttl_s * 1e6)

    def seen(self, cluster: str) -> Seen:
        """The memory of a cluster's UIDs from the epochs before; not to be changed while one runs."""
        return self._seen.setdefault(cluster, Seen())

    def facts(self, cluster: str) -> Facts:
        """What is known of a cluster's objects; written and read under `facts_lock`."""
        return self._facts.setdefault(cluster, Facts(self._retention_us))

    def know(self, cluster: str, facts: Facts) -> None:
        """Begins with facts that another process gathered."""
        self._facts[cluster] = facts

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Keeps the error that passes through, for one clear line above Beam's own."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise


class Process:
    """A picklable handle: all copies of one handle acquire the same Carried in the same process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._shared = Shared()

    def acquire(self) -> Carried:
        carried: Carried = self._shared.acquire(lambda: Carried(self.settings))
        return carried
