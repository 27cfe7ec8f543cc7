"""Bad input by the thousand: study files, folders of results, data, checkpoint files, arguments, plots, sharpness.

Hypothesis makes the cases. Allowed are two outcomes: it works, or it is refused in one line. All else is a finding: a
traceback, a hang, a file of the user's that is gone, a value that was changed on the way without a word.

``python benchmarks/attack.py`` takes some minutes and writes ``benchmarks/results/attack.json``; ``--cases N`` tries
fewer or more, ``--only KIND ...`` some kinds, and ``--seed N`` others; the latter two write nothing.
"""

import argparse
import contextlib
import io
import json
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from attacks.values import Silent
from figures import system, write
from hypothesis import HealthCheck, Phase, given, seed, settings

PATIENCE = 30
"""Seconds of wall time after which a case hangs."""

CASES = 5_000


class Hang(BaseException):
    """A case takes too long."""


@dataclass
class Tally:
    """What has come of the cases of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    found: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0

    def note(self, error: BaseException, case: Any) -> None:
        """Keep the first case of each place that an error comes from."""
        kind = {Silent: "silent", Hang: "hang"}.get(type(error), "traceback")  # type: ignore[call-overload]
        self.outcomes[kind] += 1
        frame = traceback.extract_tb(error.__traceback__)[-1]
        last = str(error).strip().rpartition("\n")[2]
        where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {last[:120]}"
        text = "".join(traceback.format_exception(error)[-12:])
        self.found.setdefault(where, {"case": repr(case)[:2000], "error": str(error)[:1000], "traceback": text[-3000:]})


def one_line(error: io.StringIO) -> None:
    """Check that the error stream holds one line or, with notes, lines that are none of a traceback."""
    lines = error.getvalue().splitlines()
    if not lines or any("Traceback" in line for line in lines) or len(lines[-1]) > 4000:
        raise AssertionError(f"no one line: {error.getvalue()[-1500:]!r}")


def outcome(attack: Any, case: Any, folder: Path) -> str:
    """``works`` or ``one line``.

    Raises:
        BaseException: whatever is neither.
    """
    out, error = io.StringIO(), io.StringIO()
    signal.alarm(PATIENCE)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
            contextlib.chdir(folder),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            attack.target(case, folder)
    except attack.refusals as refusal:
        raised = traceback.extract_tb(refusal.__traceback__)[-1].filename
        if not str(refusal).strip() or len(str(refusal)) > 4000 or "lightning_same" not in raised:
            raise
        return "one line"
    except SystemExit as stop:
        if stop.code not in (2, 0):
            raise AssertionError(f"exit code {stop.code}: {error.getvalue()[-1500:]}") from stop
        if stop.code == 2:
            one_line(error)
        return "one line" if stop.code == 2 else "works"
    finally:
        signal.alarm(0)
    return "works"


def run(attack: Any, cases: int, number: int) -> Tally:
    """Try one kind."""
    tally = Tally()

    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(attack.strategy)
    def each(case: Any) -> None:
        if sum(tally.outcomes.values()) >= cases:  # Hypothesis tries invalid ones again
            return
        with tempfile.TemporaryDirectory(prefix="attack-") as folder, no_logs():
            try:
                tally.outcomes[outcome(attack, case, Path(folder))] += 1
            except (Hang, KeyboardInterrupt, Exception, SystemExit) as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                tally.note(error, case)

    begun = time.process_time()
    while sum(tally.outcomes.values()) < cases:  # small kinds of input have fewer different cases than are asked for
        before = sum(tally.outcomes.values())
        each()
        if sum(tally.outcomes.values()) == before:
            break
    tally.seconds = time.process_time() - begun
    return tally


@contextlib.contextmanager
def no_logs() -> Iterator[None]:
    import logging

    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> int:
    parser = argparse.ArgumentParser(description="Bad input by the thousand.")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args()
    from attacks.kinds import attacks

    def hang(*_: Any) -> None:
        raise Hang(f"more than {PATIENCE} s")

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory(prefix="attack-") as shared:
        kinds = attacks(Path(shared))
        rows: dict[str, Any] = {}
        for kind in kinds:
            if given_.only and kind.name not in given_.only:
                continue
            cases = max(1, round(kind.share * given_.cases))
            tally = run(kind, cases, given_.seed)
            rows[kind.name] = {"cases": sum(tally.outcomes.values()), **tally.outcomes, "seconds": round(tally.seconds)}
            print(kind.name, json.dumps(rows[kind.name]), flush=True)
            for where, found in tally.found.items():
                print(f"  FOUND {where}\n    case: {found['case']}\n    {found['traceback']}", flush=True)
    bad = {name: row for name, row in rows.items() if set(row) & {"traceback", "hang", "silent"}}
    total = sum(row["cases"] for row in rows.values())
    refused = sum(row.get("one line", 0) for row in rows.values())
    print(f"{total} cases, {refused} refused in one line, findings in {len(bad)} kinds")
    if not given_.only and given_.seed == 0:
        table = [
            [name, *(f"{row.get(what, 0):,}" for what in ("cases", "works", "one line", "traceback", "hang", "silent"))]
            for name, row in rows.items()
        ]
        head = ["kind", "cases", "works", "one line", "tracebacks", "hangs", "silent changes"]
        write("attack", {"cases": total, "kinds": rows, "system": system(torch.get_num_threads())}, table, head)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
