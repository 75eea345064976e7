"""Damaged inputs for every reader: is each read, or refused in one line?

Each input is a small good one with bytes or values changed, by a fixed seed (tests/torture). A
child process reads them, because a library may die of one or never end.

    python benchmarks/torture/readers.py --count 50000

It resumes: `--results` keeps what was run.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the packages benchmarks and tests

from tests.torture.inputs import READERS
from tests.torture.outcomes import good_input, outcome

from benchmarks.results_file import write_results

RESULTS = Path(__file__).parents[1] / "results/readers.json"
CPU_SECONDS = 20  # of one input
ADDRESS_SPACE = 16 << 30  # bytes; a size from a damaged file must not take all memory
IN_A_CHILD = 500  # inputs


def work(name: str, first: int, last: int, log: Path) -> None:
    """Write the number of each input to a file before it is read, and its outcome after."""
    with good_input(name) as (good, place), log.open("w") as lines:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        for number in range(first, last):
            print(json.dumps([number, None]), file=lines, flush=True)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # ends the process
            found = outcome(name, number, good, place)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps([number, found]), file=lines, flush=True)


def run_part(name: str, first: int, last: int) -> tuple[dict[str, int], dict[str, str]]:
    """Count the outcomes of inputs; return others by number: a death, an endless run, an error."""
    counts: dict[str, int] = {"read": 0, "refused": 0}
    others: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        while first < last:
            # A fork has the libraries loaded.
            child = multiprocessing.get_context("fork").Process(
                target=work, args=(name, first, last, log)
            )
            child.start()
            child.join()
            begun = None
            assert log.exists(), f"the good input of {name} is refused"
            for line in log.read_text().splitlines():
                begun, found = json.loads(line)
                if found in counts:
                    counts[found] += 1
                elif found is not None:
                    others[str(begun)] = found
            assert begun is not None
            if child.exitcode:
                others[str(begun)] = f"ended by {child.exitcode}"
            first = begun + 1
    return counts, others


def run(name: str, wanted: int, known: dict[str, Any]) -> bool:
    """Read the next part of a reader's inputs; return whether there was one."""
    first = known["inputs"]
    last = min(wanted, first + IN_A_CHILD)
    if first >= last:
        return False
    counts, others = run_part(name, first, last)
    known["inputs"] = last
    known["read"] += counts["read"]
    known["refused"] += counts["refused"]
    known["others"] |= others
    return True


def main() -> None:
    """Run until each reader has its share of the inputs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=50_000, help="inputs of all readers together")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readers", nargs="+", default=list(READERS), metavar="NAME")
    arguments = parser.parse_args()
    path = arguments.results
    results = json.loads(path.read_text()) if path.exists() else {}
    whole = sum(share for _, _, share in READERS.values())
    for name in arguments.readers:
        known = results.setdefault(name, {"inputs": 0, "read": 0, "refused": 0, "others": {}})
        while run(name, round(arguments.count * READERS[name][2] / whole), known):
            write_results(results, path.with_suffix(".partial"))
            os.replace(path.with_suffix(".partial"), path)
        print(
            f"{name:22} {known['inputs']:6} inputs: {known['read']} read, {known['refused']} "
            f"refused in one line, {len(known['others'])} others",
            flush=True,
        )
    inputs = sum(known["inputs"] for known in results.values())
    others = sum(len(known["others"]) for known in results.values())
    print(f"{inputs} inputs over {len(results)} readers, {others} other outcomes")
    sys.exit(others > 0)


if __name__ == "__main__":
    main()
