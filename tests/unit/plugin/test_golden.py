"""What the plugin writes, compared with files that were read by people.

To write these files anew, after a change that is meant to change them: ``REFRESH_GOLDEN=1 pytest tests/unit/plugin``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.plugin.conftest import Generate

GOLDEN = Path(__file__).parent / "golden"
PROTOS = {
    str(path.relative_to(GOLDEN / "protos")): path.read_text("utf-8") for path in (GOLDEN / "protos").rglob("*.proto")
}

CASES = {
    "default": "",
    "client": "sides=client",
    "server": "sides=server",
    "sync": "styles=sync",
    "async": "styles=async",
    "async_server": "sides=server,styles=async,imports=absolute",
    "relative": "sides=client,styles=sync,imports=relative",
}
"""The folders in ``golden``, with the parameter that each was made with."""

OTHER_SPELLINGS = {
    "default": "sides=both,styles=both,imports=absolute",
    "relative": "imports=relative,styles=sync,sides=client",
}


def files_in(folder: Path) -> dict[str, str]:
    # The suffix keeps tools from taking them for code of this project.
    paths = folder.rglob("*.py.golden")
    return {str(path.relative_to(folder)).removesuffix(".golden"): path.read_text("utf-8") for path in paths}


def write_files(folder: Path, files: dict[str, str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / f"{name}.golden"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")


@pytest.mark.parametrize("case", CASES)
def test_golden_files(case: str, generate: Generate) -> None:
    generated = generate(PROTOS, CASES[case])
    if os.environ.get("REFRESH_GOLDEN"):
        write_files(GOLDEN / case, generated)
    assert generated == files_in(GOLDEN / case), f"not what {GOLDEN / case} has; see {__file__} for how to refresh it"


@pytest.mark.parametrize("case", OTHER_SPELLINGS)
def test_other_spellings_of_a_parameter(case: str, generate: Generate) -> None:
    assert generate(PROTOS, OTHER_SPELLINGS[case]) == files_in(GOLDEN / case)


@pytest.mark.parametrize("case", CASES)
def test_they_are_python_formatted_as_ruff_formats(case: str, tmp_path: Path) -> None:
    files = files_in(GOLDEN / case)
    for name, content in files.items():
        compile(content, name, "exec")
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--no-cache", "--diff", "."]
    done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "")
