"""The program: a ``CodeGeneratorRequest`` on standard input, a ``CodeGeneratorResponse`` on standard output.

What is wrong with a request or its parameters goes into the response's ``error``, where protoc and buf show it as one
line after the plugin's name. The exit status is 0 then too: anything else would mean that the plugin itself is broken.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import Edition
from google.protobuf.message import DecodeError

from connectrpc import __version__
from protoc_gen_connect_python.options import Options, OptionsError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "respond"]

_USAGE = """\
protoc-gen-connect_python is a plugin: protoc or buf runs it. For example:

    protoc --python_out=. --pyi_out=. --connect_python_out=. eliza.proto

or, in buf.gen.yaml:

    plugins:
      - local: protoc-gen-connect_python
        out: .
        opt: sides=both,styles=both,imports=absolute

Options, with commas between them:
    sides=client|server|both         what to generate (both)
    styles=sync|async|both           in which flavour (both)
    imports=absolute|relative        how messages are imported (absolute)

By hand:
    --version    print the version
    --help       print this
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plugin.

    Args:
        arguments: the command line without the program's name; by default the process's own.

    Returns:
        The exit status: 0, or 2 for a command line that it does not understand.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments:
        return _by_hand(arguments)
    if sys.stdin is None or sys.stdin.isatty():
        sys.stderr.write(_USAGE)
        return 2
    try:
        response = respond(sys.stdin.buffer.read())
    except OSError as error:
        response = _failure(f"cannot read the request: {error}")
    sys.stdout.buffer.write(response.SerializeToString(deterministic=True))
    sys.stdout.buffer.flush()
    return 0


def respond(data: bytes) -> CodeGeneratorResponse:
    """Answer a serialised ``CodeGeneratorRequest``. It never raises for what is in it."""
    try:
        # What the `compiler` extra brings: only this distribution's plugin needs it, not its runtime.
        from protoc_gen_connect_python import model, render
    except ModuleNotFoundError as error:
        return _failure(f"the module {error.name} is missing: install connect-python[compiler]")
    try:
        request = CodeGeneratorRequest.FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:  # the latter comes from protobuf's pure-Python implementation
        return _failure(f"cannot read the request: {error}")
    try:
        options = Options.parse(model.text(request.parameter))
        files = [
            CodeGeneratorResponse.File(name=render.path(file), content=render.content(file, options))
            for file in model.read(request)
        ]
    except (OptionsError, model.RequestError) as error:
        return _failure(str(error))
    return _announce(CodeGeneratorResponse(file=files))


def _failure(message: str) -> CodeGeneratorResponse:
    return _announce(CodeGeneratorResponse(error=" ".join(message.split())))


def _announce(response: CodeGeneratorResponse) -> CodeGeneratorResponse:
    """Say which ``.proto`` files the plugin understands. Services look the same in all of them."""
    response.supported_features = (
        CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL | CodeGeneratorResponse.FEATURE_SUPPORTS_EDITIONS
    )
    response.minimum_edition = Edition.EDITION_PROTO2
    response.maximum_edition = Edition.EDITION_2024
    return response


def _by_hand(arguments: Sequence[str]) -> int:
    if arguments == ["--version"]:
        sys.stdout.write(f"protoc-gen-connect_python {__version__}\n")
        return 0
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(_USAGE)
        return 0
    sys.stderr.write(f"protoc-gen-connect_python: unknown arguments: {' '.join(arguments)}\n\n{_USAGE}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
