"""How long a reader waits for the first word list: a fresh process, import, load, read.

    python tests/benchmarks/bench_start.py [twin-a] [--repeat 3]
"""

import argparse
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

from measuring import report

FIRST = """
from embspace_helpers import load
model = load({name!r})
print(model.space("orthogonal").table(model.parameters.vectors("V", 5)[0]))
"""


def first_list(name):
    """Seconds of the processor until it is printed."""
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", FIRST.format(name=name)], check=True,
                   stdout=subprocess.DEVNULL)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="twin-a")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    ours = min(first_list(options.name) for _ in range(options.repeat))
    report("first word list after import", options.name, ours, goal="≤ 5 s",
           mb=getrusage(RUSAGE_CHILDREN).ru_maxrss / 1000)


if __name__ == "__main__":
    main()
