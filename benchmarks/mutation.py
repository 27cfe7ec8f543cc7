"""How many small faults in the code do the tests find? Faults are put in one at a time, and the tests run on each.

    pip install -e '.[test,mutation]'
    python benchmarks/mutation.py rules gradients --sample 40   # faults by cosmic-ray's operators, drawn at random
    python benchmarks/mutation.py planted                       # those in planted_faults.toml, one for each promise
    python benchmarks/mutation.py planted --only dtype          # of them, those whose promise or code holds this
    python benchmarks/mutation.py --report                      # the last scores

What was found is kept in ``results/mutation.json`` after each fault, and the same command goes on from there; a fault
is tried again once its file, or the test that found it, has changed, a survivor once any of its tests has. Survivors
that are no faults, for nothing that anybody can observe differs, are in ``equivalent_mutants.toml`` with the reason.

The tree is copied, and faults are put into the copy. One process imports torch, Lightning and what else takes long, and
is forked for each fault: then a fault that is found at once takes a second or two. Before, the tests run once to learn
which functions each of them calls (`reach.py`): a fault inside a function is tried with the tests that call it, the
quickest first, as far as ``--seconds`` go, and of one with many parameters some (``--cases``).

A fault is found by a test that fails twice, the second time alone: not by one that fails now and then. One that makes
the tests hang is found, too: they compute for many times as long as without it, or hardly at all for `IDLE` seconds.
Time on a clock decides nothing else, so the run may have the lowest priority of a busy machine. Needs Linux.
"""

import argparse
import json
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import figures
import reach
from faults import PACKAGES, ROOT, drawn, equivalent, planted
from trials import Copy, preload, write_whole

RESULTS = Path(__file__).parent / "results" / "mutation.json"


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(results: dict[str, Any]) -> None:
    write_whole(RESULTS, json.dumps(results, indent=1, sort_keys=True) + "\n")


def run(package: str, options: argparse.Namespace) -> None:
    faults, total = (planted(), 0) if package == "planted" else drawn(package, options.sample, options.seed)
    known = load().get(package, {}).get("faults", {})
    left = [
        fault
        for fault in faults
        if not fault.is_known(known.get(fault.name, {}), options.again)
        and re.search(options.only, f"{fault.name} {fault.promise}")
    ]
    # What was found before comes last.
    left.sort(key=lambda fault: known.get(fault.name, {}).get("outcome") == "found")
    total = total or len(faults)
    print(f"{package}: {len(faults)} faults of {total}, {len(left)} of them to try", flush=True)
    kept = {fault.name: known[fault.name] for fault in faults if fault.name in known}
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        reached = copy.reached(reach.files_of(ROOT, left[0].tests)) if left and package != "planted" else {}
        without_a_fault: dict[tuple[str, ...], float] = {}
        for fault in left:
            outcome, by, seconds = "survived", "", 0.0
            if package != "planted":
                tests = fault.reached_by(reached, options.cases, options.seconds)
                limit = 60 + options.slowness * sum(reached[test]["seconds"] for test in tests)
                outcome, by, seconds = copy.try_out(fault, tests, limit, reached)
            several = fault.tests if package == "planted" else fault.several if options.several else ()
            if several and outcome == "survived":
                if several not in without_a_fault:
                    code, without_a_fault[several] = copy.tests(several, 3600, [])
                    if code:
                        raise SystemExit(f"Without a fault the tests fail:\n{copy.log.read_text()[-3000:]}")
                outcome, by, more = copy.try_out(fault, several, 60 + options.slowness * without_a_fault[several])
                seconds += more
            kept[fault.name] = {
                "line": fault.line,
                "outcome": outcome,
                "first": known[fault.name].get("first") if fault.name in known else outcome,
                "by": by,
                "cpu_seconds": round(seconds, 1),
                "state": fault.state(by),
            } | ({"promise": fault.promise} if fault.promise else {})
            results = load()
            results[package] = {"of": total, "seed": options.seed, "faults": kept}
            save(results)
            print(f"{outcome:9} {seconds:6.1f} s  {fault.file}:{fault.line}  {by}", flush=True)
            if outcome == "survived":
                print(f"    - {fault.before.strip()}\n    + {fault.after.strip()}", flush=True)
    report()


def report() -> None:
    """Print the scores and write them to the documentation. A fault that makes the tests hang is found."""
    rows = []
    reasons = equivalent()
    for package, content in load().items():
        faults = content["faults"]
        missed = [name for name, fault in faults.items() if fault["outcome"] == "survived"]
        same = [name for name in missed if name in reasons]
        found, real = len(faults) - len(missed), len(faults) - len(same)
        first = [fault.get("first") for fault in faults.values()]
        low, high = interval(found, real)
        rows.append(
            (
                package,
                str(content["of"] or ""),
                str(len(faults)),
                "" if None in first else str(len(first) - first.count("survived")),
                str(found),
                str(len(same)),
                str(real - found),
                f"{100 * found / max(1, real):.0f}%",
                "" if package == "planted" else f"{100 * low:.0f}% to {100 * high:.0f}%",
            )
        )
    figures.write_table("mutation", rows, HEAD)


HEAD = ("package", "faults", "tried", "found at first", "found now", "equivalent", "missed", "score", "95% interval")


def interval(found: int, tried: int) -> tuple[float, float]:
    """The share of all faults that are found, by Clopper and Pearson's interval from a random sample of them."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, found, tried - found + 1)) if found else 0.0
    high = float(beta.ppf(0.975, found + 1, tried - found)) if found < tried else 1.0
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="*", metavar="PACKAGE", help=", ".join([*PACKAGES, "planted"]))
    parser.add_argument("--sample", type=int, default=30, help="faults of each package")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--cases", type=int, default=12, help="of each test that has more parameters than that")
    parser.add_argument("--seconds", type=float, default=60, help="of CPU for the tests of a fault, the quickest first")
    parser.add_argument("--again", action="store_true", help="try survivors again, for which there is more to run now")
    parser.add_argument("--several", action="store_true", help="try survivors with tests on several processes, too")
    parser.add_argument("--slowness", type=float, default=20, help="times the CPU time of the tests, until a hang")
    parser.add_argument("--only", default="", metavar="PATTERN", help="try those alone whose code or promise holds it")
    parser.add_argument("--report", action="store_true", help="print the last scores")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    if unknown := set(arguments.package) - {*PACKAGES, "planted"}:
        parser.error(f"PACKAGE must be among {', '.join([*PACKAGES, 'planted'])}, got {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM; the same command goes on"))
    preload()
    for package in arguments.package:
        run(package, arguments)


if __name__ == "__main__":
    main()
