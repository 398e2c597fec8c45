"""Runs the tests with real servers, some files of them side by side.

    python tests/integration/run.py [arguments for pytest]

With arguments there is one pytest for all files, which shows what it does. Without, each file has one of its own: they
wait much, for deadlines and for servers to start. Tests with the mark ``alone`` hold the clock to fractions of a second
or load the machine. They are run one after the other when all others are over.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent

SIDE_BY_SIDE = os.cpu_count() or 1
"""How many files at once. More than one for each core would be more than tests with deadlines can bear."""

LONG = ("test_httpx", "test_grpcio", "test_full_duplex", "test_hostile", "test_generated_code", "test_interruption")
"""The files that take long, which are begun first so that none of them is alone at the end."""

NOTHING_CHOSEN = 5
"""The status of a pytest that was left without tests."""


class Outcome(NamedTuple):
    """How the tests of a pytest have ended."""

    label: str
    status: int
    passed: int
    failed: int
    skipped: int
    seconds: float

    @property
    def good(self) -> bool:
        return not self.status and not self.failed and self.passed > 0

    def __str__(self) -> str:
        told = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped in {self.seconds:.1f} s"
        ended = f", but pytest ended with status {self.status}" if self.status and not self.failed else ""
        return f"{self.label}: {told}{ended}"


def main(arguments: list[str]) -> int:
    if arguments:
        return subprocess.run([sys.executable, "-m", "pytest", str(HERE), *arguments], check=False).returncode
    began = time.monotonic()
    files = sorted(HERE.glob("test_*.py"), key=lambda file: (file.stem not in LONG, file.stem))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        runs = [pool.submit(test, file.stem, "not alone", file) for file in files]
        outcomes = [run.result() for run in runs]
    outcomes = [outcome for outcome in outcomes if outcome.status != NOTHING_CHOSEN]
    outcomes.append(test("alone", "alone", HERE))

    passed, failed = sum(outcome.passed for outcome in outcomes), sum(outcome.failed for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    print(f"{passed} passed, {failed} failed, {skipped} skipped in {time.monotonic() - began:.1f} s")
    return int(not all(outcome.good for outcome in outcomes))


def test(label: str, mark: str, path: Path) -> Outcome:
    """Run those of the tests there that have the mark; what pytest prints is shown when something failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(path), "-m", mark, f"--junitxml={report}"]
        # Its cache is in the tree, which all of them share.
        command += ["-p", "no:cacheprovider"]
        printed = Path(folder) / "printed"  # a pipe would have to be read after each dot
        with printed.open("wb") as output:
            status = subprocess.run(
                command, cwd=HERE.parents[1], stdout=output, stderr=subprocess.STDOUT, check=False
            ).returncode
        if status not in (0, NOTHING_CHOSEN):
            print(f"\n{label}:\n{printed.read_text('utf-8', 'replace')}")
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped", "time"), 0.0)
        if report.exists():
            for suite in ET.parse(report).getroot().iter("testsuite"):
                counts = {name: counts[name] + float(suite.get(name, 0)) for name in counts}
    failed = int(counts["failures"] + counts["errors"])
    skipped = int(counts["skipped"])
    passed = int(counts["tests"]) - failed - skipped
    outcome = Outcome(label, status, passed, failed, skipped, counts["time"])
    if status != NOTHING_CHOSEN:
        print(outcome, flush=True)
    return outcome


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
