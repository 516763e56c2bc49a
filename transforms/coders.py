"""Coders of the elements: msgpack by msgspec, typed, deterministic.

The bytes are part of what a savepoint holds: a field may be added at a struct's end with a default, none may be
reordered or removed. Golden bytes in the tests say so.
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type

from transforms.types import (
    Changes,
    DeadLetter,
    Encoded,
    Gap,
    NewsChunk,
    Position,
    Progress,
    Segment,
    Target,
)


class StructCoder(beam.coders.Coder):
    """Encodes one msgspec struct type."""

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        self._struct = struct
        self._decoder = msgspec.msgpack.Decoder(struct)
        self._encoder = msgspec.msgpack.Encoder(order="deterministic")

    def encode(self, value: Any) -> bytes:
        return self._encoder.encode(value)

    def decode(self, encoded: bytes) -> Any:
        return self._decoder.decode(encoded)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type[msgspec.Struct]:
        return self._struct

    def __reduce__(self) -> tuple[type[StructCoder], tuple[type[msgspec.Struct]]]:
        return StructCoder, (self._struct,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StructCoder) and self._struct is other._struct

    def __hash__(self) -> int:
        return hash(self._struct)


def _coder_class(struct: type[msgspec.Struct]) -> type[StructCoder]:
    """Beam's registry takes classes; each struct gets a subclass that needs no argument."""

    class Registered(StructCoder):
        def __init__(self) -> None:
            super().__init__(struct)

    Registered.__name__ = Registered.__qualname__ = f"{struct.__name__}Coder"
    return Registered


def typed(outputs: beam.pvalue.DoOutputsTuple, **types: Any) -> beam.pvalue.DoOutputsTuple:
    """The outputs of a ParDo with the element type of each, which Beam can't infer of tagged ones."""
    for tag, element_type in types.items():
        outputs[tag].element_type = convert_to_beam_type(element_type)
    return outputs


def register() -> None:
    """Tells Beam's registry of the coders; idempotent, and called where a graph is built."""
    for struct in (Changes, DeadLetter, Encoded, Gap, NewsChunk, Position, Progress, Segment, Target):
        beam.coders.registry.register_coder(struct, _coder_class(struct))
