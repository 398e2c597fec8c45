# Recipes run on what `uv run` puts on the PATH: `.venv/bin/uv run just <recipe>`.

set positional-arguments

python := "python"

# List the recipes.
default:
    @just --list

# Everything that has to pass before a change lands.
all: test

# Generate code from examples/eliza/eliza.proto, serve it under gunicorn and call every RPC.
demo:
    {{python}} examples/eliza/demo.py

# ruff, mypy --strict, the import contract, unit, integration, interoperability and conformance tests.
test: check mypy unit-test integration-test interop-test interop-go-test conformance-test

# What is wrong with the form of the code.
check:
    ruff check .
    ruff format --check .
    lint-imports

# Mend what can be mended of the form of the code.
fix:
    ruff check --fix .
    ruff format .

alias format := fix

# Types.
mypy: protoc-gen
    {{python}} tests/conformance/prepare.py
    {{python}} benchmarks/generate.py
    mypy
    MYPYPATH=src:benchmarks:benchmarks/gen mypy benchmarks/*.py
    mypy --config-file tests/conformance/mypy.ini
    {{python}} tests/integration/conftest.py
    mypy --config-file tests/integration/mypy.ini
    mypy --config-file tests/interop/mypy.ini
    MYPYPATH=src:tests/unit mypy tests/unit/*.py
    MYPYPATH=src:. mypy tests/unit/plugin/*.py
    MYPYPATH=src:tests/unit:tests/fuzz mypy tests/fuzz/*.py

# Tests without sockets, on every Python that is installed.
unit-test *args:
    {{python}} tests/unit/run.py "$@"

# Tests with real servers, tools and type checkers.
integration-test *args:
    {{python}} tests/integration/run.py "$@"

# connect-es in Node and in Chromium against our servers. Needs Node.
interop-test *args:
    {{python}} tests/interop/run.py "$@"

# connect-go both ways, grpcurl and buf curl. Needs Go.
interop-go-test *args:
    {{python}} tests/interop/run_go.py "$@"

# The official conformance runner against clients and servers. Needs Go.
conformance-test *args:
    {{python}} tests/conformance/run.py "$@"

# How fast it is, as a ratio to the same work without it.
bench *args:
    {{python}} benchmarks/run.py "$@"

# Generate the example's code.
protoc-gen:
    buf generate
