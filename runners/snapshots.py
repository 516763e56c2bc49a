"""The facts of a cluster in the sink, so that a restart still knows what is gone: saved now and then and at the end.

They are a help, not a proof: a start that finds none, or old ones, lists the objects anew and goes on.
"""

from __future__ import annotations

import logging
import time

import msgspec
from isal import igzip

from transforms import codec, layout
from transforms.facts import Facts
from transforms.store import Store

_LOG = logging.getLogger(__name__)
_EVERY_S = 300.0


class SavedFacts:
    """Loads and saves one cluster's facts, every five minutes at most; the newest object is the one that counts."""

    def __init__(self, store: Store, cluster: str) -> None:
        self._store, self._cluster = store, cluster
        self._saved_at = time.monotonic()
        self._saved_us = 0

    def load(self) -> Facts | None:
        """The newest facts that can be read; None when there are none."""
        for path in reversed([entry.path for entry in self._store.list(layout.facts(self._cluster, ""))]):
            try:
                return Facts.decode(igzip.decompress(self._store.read(path)))
            except (msgspec.MsgspecError, *codec.DAMAGED) as error:
                _LOG.warning("%s can't be read (%s): objects that are gone may be unknown", path, error)
        return None

    def save(self, facts: Facts, *, now: bool = False) -> None:
        """Writes the facts where they changed since, if it is time (or `now`), and deletes what was saved before."""
        due = now or time.monotonic() - self._saved_at > _EVERY_S
        if not due or not len(facts) or facts.snapshot_time_us == self._saved_us:
            return
        older = [entry.path for entry in self._store.list(layout.facts(self._cluster, ""))]
        path = layout.facts(self._cluster, f"{time.time_ns() // 1000:020d}")
        self._store.create(path, igzip.compress(facts.encode(), 1, mtime=0))
        for before in older:
            self._store.delete(before)
        self._saved_at, self._saved_us = time.monotonic(), facts.snapshot_time_us
