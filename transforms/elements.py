"""Elements: the fixed elements that a graph starts from, under step names that stay the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam


class _EachFn(beam.DoFn):
    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values

    def process(self, impulse: bytes) -> Iterator[Any]:
        yield from self._values


@dataclasses.dataclass
class Elements(beam.PTransform):
    """The pipeline's begin → these values, one element each, spread over the workers.

    What beam.Create does, but for the names: one of its steps is named after a line of Beam's source, and it has other
    steps for one element than for two, while a savepoint knows the steps by their names.
    """

    values: Sequence[Any]
    element_type: type

    def expand(self, begin: Any) -> Any:
        each = beam.ParDo(_EachFn(list(self.values))).with_output_types(self.element_type)
        return begin | "Impulse" >> beam.Impulse() | "Each" >> each | "Spread" >> beam.Reshuffle()
