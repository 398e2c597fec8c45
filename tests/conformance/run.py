"""Runs the official conformance suite against our clients and servers.

    python tests/conformance/run.py [client-sync client-async server-gunicorn server-granian]

Without names, all of them. Fails when a case fails, and when a run has not as many cases as it should.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from prepare import GEN, HERE, RUNNER, prepare

# Far beyond what a run takes; only a program that hangs gets here.
LIMIT_SECONDS = 600

# How many cases there are for the features in the configuration files. A run that has shrunk must not pass.
CLIENT_CASES = 1618
SERVER_CASES = 1500


class Run(NamedTuple):
    """One program that is judged: what the runner has to know of it, and how many cases there are for it."""

    mode: str
    program: list[str]
    cases: int


RUNS = {
    "client-sync": Run("client", ["client.py", "--mode", "sync"], CLIENT_CASES),
    "client-async": Run("client", ["client.py", "--mode", "async"], CLIENT_CASES),
    "server-gunicorn": Run("server", ["server.py", "--server", "gunicorn"], SERVER_CASES),
    "server-granian": Run("server", ["server.py", "--server", "granian"], SERVER_CASES),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(RUNS)}; default: all")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(RUNS)
    if unknown:
        parser.error(f"no such run: {', '.join(sorted(unknown))}")

    # As an exception, so that what runs is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("conformance: terminated"))

    prepare()
    failed = [name for name in arguments.names or RUNS if not passes(name, RUNS[name])]
    if failed:
        raise SystemExit(f"conformance: failed: {', '.join(failed)}")


def passes(name: str, run: Run) -> bool:
    """Let the runner judge, and print its verdict."""
    program, *options = run.program
    command = [str(RUNNER), "--mode", run.mode, "--conf", str(HERE / f"config_{run.mode}.yaml")]
    command += ["--", sys.executable, str(HERE / program), *options]
    start = time.monotonic()
    report, status = judge(command)
    seconds = time.monotonic() - start

    cases, passed = totals(report)
    ok = status == 0 and cases == passed == run.cases
    verdict = "ok" if ok else "FAILED"
    print(
        f"{name}: {verdict}: {passed} of {cases} cases passed, {run.cases} expected ({seconds:.0f} s)",
        flush=True,
    )
    if not ok:
        print(report, flush=True)
    return ok


def judge(command: list[str]) -> tuple[str, int]:
    """What the runner reports, and its exit status."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(GEN), os.environ.get("PYTHONPATH")])),
    }
    # In a process group of its own, so that nothing of it is left behind when we stop it.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        report, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the runner did not end within {LIMIT_SECONDS} s", 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    return report, process.returncode


def totals(report: str) -> tuple[int, int]:
    """How many cases there were, and how many of them passed."""
    found = re.search(r"^Total cases: (\d+)\n(\d+) passed, \d+ failed", report, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else (0, 0)


if __name__ == "__main__":
    main()
