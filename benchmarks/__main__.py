"""`python -m benchmarks [demo|throughput|judge] [--folder DIR]`; all of them without a name."""

import argparse
import tempfile
from pathlib import Path

from benchmarks import demo, throughput

BENCHMARKS = {"throughput": throughput.main, "demo": demo.main}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS))
    parser.add_argument("--folder", type=Path, default=None, help="where runs and JSON go")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="yendor-bench-"))
    for name in [arguments.name] if arguments.name else list(BENCHMARKS):
        BENCHMARKS[name](folder)
    print(f"all figures: {folder}")
