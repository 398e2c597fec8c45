"""Compressions: what comes back is what went in, or an error, and never more than the limit."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import brotli
import pytest

from connectrpc import compression
from connectrpc.compression import TooLargeError
from connectrpc.compression.gzip import GzipCompression

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from connectrpc.compression import Compression

NAMES = ["gzip", "br", "zstd"]
EXPANDING = b"\0" * 3_000_000
DATA = [b"", b"x", b"hello " * 1000, bytes(range(256)) * 700, os.urandom(200_000)]

# The reference implementations, for both directions.
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": zstd.decompress,
}


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> Compression:
    name: str = request.param
    return compression.named(name)


@pytest.mark.parametrize("data", DATA, ids=len)
def test_there_and_back(method: Compression, data: bytes) -> None:
    compressed = method.compress(data)
    assert DECOMPRESS[method.name](compressed) == data
    for limit in (None, len(data), len(data) + 1, 10**9):
        assert method.decompress(compressed, limit) == data


@pytest.mark.parametrize("data", DATA, ids=len)
def test_reads_what_others_write(method: Compression, data: bytes) -> None:
    assert method.decompress(COMPRESS[method.name](data), None) == data


@pytest.mark.parametrize("data", [DATA[2], DATA[3], EXPANDING], ids=len)
def test_the_limit_is_exact(method: Compression, data: bytes) -> None:
    compressed = method.compress(data)
    assert method.decompress(compressed, len(data)) == data
    for limit in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(TooLargeError):
            method.decompress(compressed, limit)


def test_a_bomb_does_not_go_off(method: Compression) -> None:
    """What the data would expand to must not be in memory, not even for a moment."""
    bomb = method.compress(b"\0" * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            method.decompress(bomb, 100_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("data", [b"x", b"hello " * 1000, EXPANDING], ids=len)
@pytest.mark.parametrize("limit", [None, 10**7])
def test_every_truncation_is_an_error(method: Compression, data: bytes, limit: int | None) -> None:
    compressed = method.compress(data)
    step = max(1, len(compressed) // 50)
    for end in [*range(0, len(compressed), step), len(compressed) - 1]:
        with pytest.raises(Exception) as caught:
            method.decompress(compressed[:end], limit)
        assert not isinstance(caught.value, TooLargeError), end


@pytest.mark.parametrize("garbage", [b"x", b"garbage!", b"\0", b"\x1f\x8b"])
def test_garbage_behind_the_end_is_an_error(method: Compression, garbage: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017  each library has its own
        method.decompress(method.compress(b"hello") + garbage, None)


@pytest.mark.parametrize("data", [b"not compressed at all", b"\0" * 100, b"\x1f\x8b\x08", b"\xff" * 100])
def test_nonsense_is_an_error(method: Compression, data: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017
        method.decompress(data, 1000)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_several_members_in_a_row(name: str) -> None:
    """RFC 1952 section 2.2 and RFC 8878 section 3.1."""
    method = compression.named(name)
    data = method.compress(b"one ") + method.compress(b"") + method.compress(b"two")
    assert method.decompress(data, None) == b"one two"
    assert method.decompress(data, 7) == b"one two"
    with pytest.raises(TooLargeError):
        method.decompress(data, 6)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_many_tiny_members_cost_linear_time(name: str) -> None:
    """A request of the default limit must not keep a thread busy for a minute; refusing it is fine too."""
    method = compression.named(name)
    member = method.compress(b"")

    def seconds(size: int) -> float:
        data = member * (size // len(member))
        start = time.perf_counter()
        try:
            assert method.decompress(data, 1000) == b""
        except ValueError as error:
            assert "frames" in str(error)  # noqa: PT017
        return time.perf_counter() - start

    seconds(100_000)
    small = min(seconds(100_000) for _ in range(3))
    assert min(seconds(1_600_000) for _ in range(2)) < 50 * small, "16 times as much takes 16 times as long"


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_what_follows_a_member_is_not_copied_for_each(name: str) -> None:
    """Else a few hundred small ones before a large one take as long as gigabytes."""
    method = compression.named(name)
    size = 4 * 1024 * 1024
    # A comment of that length, and a frame that is to be skipped: they decompress to nothing.
    large = {
        "gzip": b"\x1f\x8b\x08\x10\0\0\0\0\0\x03" + b"c" * size + b"\0" + gzip.compress(b"")[10:],
        "zstd": b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size),
    }[name]
    data = method.compress(b"a") * 100 + large + method.compress(b"b")
    assert method.decompress(data, None) == b"a" * 100 + b"b"
    tracemalloc.start()
    try:
        method.decompress(data, None)
        assert tracemalloc.get_traced_memory()[1] < size // 4
    finally:
        tracemalloc.stop()


def test_zstd_window() -> None:
    """RFC 9659: a receiver need not have more than 8 MiB for the window, so an attacker must not be given more."""
    data = os.urandom(1000)
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    compressed = compressor.compress(data) + compressor.flush()
    assert zstd.decompress(compressed) == data, "it is fine but for its window"
    with pytest.raises(zstd.ZstdError):
        compression.named("zstd").decompress(compressed, None)


def test_gzip_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header can hold the time, which would make every answer another to a cache."""
    one = GzipCompression().compress(b"hello")
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert GzipCompression().compress(b"hello") == one


def test_levels() -> None:
    words = [b"alpha ", b"beta ", b"gamma ", b"delta ", b"epsilon "]
    data = b"".join(random.Random(1).choices(words, k=20_000))
    assert len(GzipCompression(9).compress(data)) < len(GzipCompression(1).compress(data))
    assert len(compression.named("br").compress(data)) < len(data) * 0.7
    assert len(compression.named("zstd").compress(data)) < len(data) * 0.7


def test_zlib_is_not_gzip() -> None:
    with pytest.raises(zlib.error):
        GzipCompression().decompress(zlib.compress(b"hello"), None)


@pytest.mark.parametrize("name", NAMES)
def test_named(name: str) -> None:
    found = compression.named(name)
    assert found.name == name
    assert compression.named(name) is found


@pytest.mark.parametrize("name", ["", "GZIP", "deflate", "identity", "*"])
def test_no_such_name(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        compression.named(name)
    assert repr(name) in str(caught.value)
    for known in NAMES:
        assert known in str(caught.value)


def test_installed() -> None:
    assert [found.name for found in compression.installed()] == ["zstd", "br", "gzip"]


def run_script(script: str, *, path: Path | None = None) -> str:
    environ = {**os.environ, **({"PYTHONPATH": str(path)} if path is not None else {})}
    command = [sys.executable, "-W", "error", "-c", script]
    process = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, timeout=30)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_without_the_extras() -> None:
    """Only gzip is there then, and asking for another says what to install."""
    script = """
import sys
for name in ("brotli", "backports", "backports.zstd", "compression", "compression.zstd"):
    sys.modules[name] = None
from connectrpc import compression
print([found.name for found in compression.installed()])
for name in ("br", "zstd"):
    try:
        compression.named(name)
    except ValueError as error:
        print(error)
"""
    installed, br, zstd_ = run_script(script).splitlines()
    assert installed == "['gzip']"
    assert "pip install 'connect-python[br]'" in br
    assert "pip install 'connect-python[zstd]'" in zstd_


@pytest.mark.parametrize(
    "contents",
    ["class Decompressor: process = None\ndef compress(data): ...", "raise ImportError", ""],
    ids=["old", "broken", "another"],
)
def test_a_brotli_that_is_of_no_use(tmp_path: Path, contents: str) -> None:
    """Many packages bring one, in releases older than the extra's: it is as good as none."""
    (tmp_path / "brotli.py").write_text(contents)
    script = """
from connectrpc import compression
print([found.name for found in compression.installed()])
try:
    compression.named("br")
except ValueError as error:
    print(error)
"""
    installed, br = run_script(script, path=tmp_path).splitlines()
    assert installed == "['zstd', 'gzip']"
    assert "too old: pip install 'connect-python[br]'" in br


def test_libraries_load_when_they_are_used() -> None:
    script = """
import sys
import connectrpc.compression
connectrpc.compression.named("gzip")
print([name for name in ("brotli", "backports.zstd", "compression.zstd") if name in sys.modules])
"""
    assert run_script(script) == "[]"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the standard library has a package of that name")
def test_a_package_of_the_users_named_compression(tmp_path: Path) -> None:
    """Looking for what only Python 3.14 has must not import, nor take for it, what is the user's own."""
    (tmp_path / "compression").mkdir()
    (tmp_path / "compression" / "__init__.py").write_text("print('imported')")
    (tmp_path / "compression" / "zstd.py").write_text("raise RuntimeError")
    script = "from connectrpc import compression; print([found.name for found in compression.installed()])"
    assert run_script(script, path=tmp_path) == "['zstd', 'br', 'gzip']"
