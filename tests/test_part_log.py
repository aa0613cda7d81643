"""What a part prints, in processes of its own."""

import subprocess
import sys

from orchestration.part_log import log_to

PRINTS = """
import os, subprocess, sys
from pathlib import Path
from orchestration.part_log import log_to
log_to(Path(sys.argv[1]) / "logs", "actor-00")
print("by Python \\udc80")
os.write(1, b"by a library\\n")
subprocess.run(["sh", "-c", "echo by a child >&2"], check=True)
"""


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )


def test_all_that_a_part_prints_is_in_its_file_one_process_behind_the_other(tmp_path):
    for code in (PRINTS, PRINTS + "import ctypes; ctypes.string_at(0)\n"):
        done = run(code, tmp_path)
        assert (done.stdout, done.stderr) == ("", "")
    lines = (tmp_path / "logs" / "actor-00.log").read_text().splitlines()
    assert [line for line in lines if line.startswith("by ")] == 2 * ["by Python \\udc80", "by a library", "by a child"]
    assert len([line for line in lines if line.startswith("--- actor-00, process ")]) == 2
    assert "Fatal Python error: Segmentation fault" in lines and any("string_at" in line for line in lines)


def test_a_file_that_cannot_be_opened_ends_nothing(tmp_path, capsys):
    (tmp_path / "logs").write_text("no folder")
    log_to(tmp_path / "logs", "learner")
    assert "learner.log: cannot be written: File exists" in capsys.readouterr().err


def test_who_prints_does_not_fail_of_a_full_disk(tmp_path):
    full = PRINTS.partition("print(")[0] + (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "for _ in range(100): print('by Python'); print('by Python', file=sys.stderr)\n"
    )
    assert run(full, tmp_path).returncode == 0
    assert (tmp_path / "logs" / "actor-00.log").stat().st_size == 100
