"""``python -m tests.fuzz [--seconds N] [TARGET ...]``: each target for so long under atheris, guided by coverage.

A crash ends the run with its exit code, and its input is left beside it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ONE = """
import sys
import atheris

with atheris.instrument_imports(include=["heliograph"]):
    from tests.fuzz.targets import TARGETS
atheris.Setup(sys.argv, TARGETS[{name!r}])
atheris.Fuzz()
"""


def main() -> int:
    from tests.fuzz.seeds import SEEDS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[[], *SEEDS], default=[])
    parser.add_argument("--seconds", type=int, default=5, help="for each target")
    options = parser.parse_args()
    failed = []
    for name in options.targets or SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            for number, seed in enumerate(SEEDS[name]):
                (Path(folder) / str(number)).write_bytes(seed)
            limits = [f"-max_total_time={options.seconds}", "-max_len=4096", "-rss_limit_mb=4096", "-timeout=20"]
            command = [sys.executable, "-c", ONE.format(name=name), *limits, f"-artifact_prefix=crash-{name}-", folder]
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds + 300)
        runs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
        print(f"{name}: {runs[-1] if runs else 'failed'}", flush=True)
        if done.returncode:
            print(done.stderr[-3000:], flush=True)
            failed.append(name)
    print(f"{len(options.targets or SEEDS) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
