"""What the plugin's tests share: descriptors, which protoc makes of sources when a test asks for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protoc_gen_connect_python.main import respond

if TYPE_CHECKING:
    from collections.abc import Mapping

Compile = Callable[..., CodeGeneratorRequest]
Generate = Callable[..., dict[str, str]]

PROTOC = Path(sys.executable).parent / "protoc"


@pytest.fixture
def compile_protos(tmp_path: Path) -> Compile:
    """Makes the request that protoc would send: ``compile_protos({"a.proto": "..."}, "sides=client")``.

    A source may be bytes. The files to generate are all that are given, or those in ``only``.
    """

    def compile_(
        sources: Mapping[str, str | bytes], parameter: str = "", *, only: list[str] | None = None
    ) -> CodeGeneratorRequest:
        for name, source in sources.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source if isinstance(source, bytes) else source.encode())
        descriptors = tmp_path / "descriptors.bin"
        options = ["--include_imports", "--include_source_info", f"--descriptor_set_out={descriptors}"]
        subprocess.run([PROTOC, "-I.", *options, *sources], cwd=tmp_path, check=True, timeout=30)
        return CodeGeneratorRequest(
            file_to_generate=list(sources) if only is None else only,
            parameter=parameter,
            proto_file=FileDescriptorSet.FromString(descriptors.read_bytes()).file,
        )

    return compile_


@pytest.fixture
def generate(compile_protos: Compile) -> Generate:
    """Takes what ``compile_protos`` takes, and gives the text of the generated files by their paths."""

    def generate_(sources: Mapping[str, str | bytes], parameter: str = "", **options: list[str]) -> dict[str, str]:
        response = respond(compile_protos(sources, parameter, **options).SerializeToString())
        assert response.error == ""
        return {file.name: file.content for file in response.file}

    return generate_
