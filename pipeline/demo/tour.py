"""What the demo's output holds and how to read it: `python -m pipeline.demo.tour OUTPUT`."""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Sequence

from kubehistory import record_pb2

from transforms.read import read_records
from transforms.store import open_store


def main(argv: Sequence[str]) -> int:
    """Counts the records of a directory by kind, by reason and by Service, and names the commands that read it."""
    (output,) = argv
    kinds: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    services: collections.Counter[str] = collections.Counter()
    enriched: collections.Counter[str] = collections.Counter()
    for record in read_records(open_store(output)):
        kinds[record_pb2.Kind.Name(record.kind)] += 1
        if record.kind == record_pb2.EVENT:
            reasons[record.reason] += record.occurrences
            enriched[record_pb2.Enrichment.Name(record.enrichment)] += 1
            services.update(f"{service.namespace}/{service.name}" for service in record.services)
    files = [os.path.join(d, name) for d, _, names in os.walk(output) for name in names if name.endswith(".pb.gz")]
    size = sum(map(os.path.getsize, files))
    print(f"\n{output} holds {sum(kinds.values()):,} records in {len(files)} files, {size / 1000:,.0f} kB:")
    for title, counter in (
        ("by kind", kinds),
        ("events by reason", reasons),
        ("events by Service under impact", services),
        ("events by enrichment", enriched),
    ):
        print(f"  {title + ':':32}" + ", ".join(f"{name} {count:,}" for name, count in counter.most_common(6)))
    print(
        f"""
To read it:
  .venv/bin/python -m pipeline.cat {output} --service shop/checkout      records as JSON lines
  .venv/bin/python -m pipeline.impact {output} --service shop/checkout   what happened to a Service
  .venv/bin/python -m pipeline.verify {output}                           the proof that nothing is missing"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
