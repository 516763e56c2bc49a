"""What a person sees of a running job: one line that is kept current on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from runners.history import Epoch
from transforms.kube import Readers

_EVERY_S = 10.0


class Display:
    """Counts what epochs read and wrote. `out` is written to only at epochs."""

    def __init__(self, readers: Readers, out: TextIO = sys.stderr) -> None:
        self._readers, self._out = readers, out
        self._terminal = out.isatty()
        self._began = time.monotonic()
        self._shown_at = float("-inf")
        self._read = self._written = self._segments = self._bytes = self._dead = self._epochs = 0
        self._lag_s = 0.0
        self._changed = False

    def epoch(self, epoch: Epoch) -> None:
        """Takes in an epoch that was committed."""
        progress = [one for several in epoch.progress.values() for one in several]
        segments = [one for several in epoch.segments.values() for one in several]
        self._epochs += 1
        self._read += sum(one.read for one in progress)
        self._written += sum(one.count for one in segments)
        self._segments += len(segments)
        self._bytes += sum(one.size for one in segments)
        self._dead += sum(count for objects in epoch.dead.values() for count in objects.values())
        self._lag_s = max(0.0, time.time() - epoch.began_us / 1e6)
        self._changed = True
        if self._terminal or time.monotonic() - self._shown_at > _EVERY_S:
            self._show()

    def close(self) -> None:
        """The last state, and the end of the line."""
        if self._changed:
            self._show()
        if self._terminal and self._epochs:
            self._out.write("\n")
        self._out.flush()

    def _show(self) -> None:
        self._shown_at, self._changed = time.monotonic(), False
        line = (
            f"{self._shown_at - self._began:.0f} s: {self._read:,} objects read, {self._written:,} records written in "
            f"{self._segments:,} files ({self._bytes / 1e6:,.1f} MB), epoch {self._epochs} took {self._lag_s:.1f} s, "
            f"{self._readers.requests:,} API requests"
        )
        if self._dead:
            line += f", {self._dead:,} DEAD LETTERS"
        self._out.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        self._out.flush()
