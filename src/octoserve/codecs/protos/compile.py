"""Compile the .proto files here into `descriptors.bin`; needs grpcio-tools. `make protos`; a test checks for drift."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def compiled() -> bytes:
    """The FileDescriptorSet of every .proto file in this folder, and of what they import, imports first."""
    from grpc_tools import protoc

    known = Path(protoc.__file__).with_name("_proto")  # Google's own, wrappers and such
    sources = sorted(path.name for path in HERE.glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "descriptors.bin")
        if protoc.main(
            ["protoc", f"-I{HERE}", f"-I{known}", "--include_imports", f"--descriptor_set_out={out}", *sources]
        ):
            sys.exit("protoc failed")
        return out.read_bytes()


if __name__ == "__main__":
    (HERE / "descriptors.bin").write_bytes(compiled())
