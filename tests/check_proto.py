"""Whether the generated code is that of proto/record.proto: `python -m tests.check_proto` exits 1 where it is not."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent
GENERATED = ("record_pb2.py", "record_pb2.pyi")


def main() -> int:
    """Generates the code anew and compares it with what is checked in."""
    with tempfile.TemporaryDirectory() as directory:
        failed = protoc.main(
            [
                "protoc",
                f"-I{ROOT}/proto",
                f"--python_out={directory}",
                f"--pyi_out={directory}",
                f"{ROOT}/proto/record.proto",
            ]
        )
        if failed:
            return 1
        for name in GENERATED:
            if (Path(directory) / name).read_bytes() != (ROOT / "proto/kubehistory" / name).read_bytes():
                print(
                    f"proto/kubehistory/{name} is not what proto/record.proto gives: run `make proto`", file=sys.stderr
                )
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
