"""Kill a study ten times, at random moments of its real command, and compare its report with an undisturbed one.

``PYTHONPATH=tests python -m support.kill_study [SEED]``; some minutes on two cores.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.studies import content, markers, write_study

COMMAND = [sys.executable, "-c", "import sys; from lightning_same.experiments.study import main; main(sys.argv[1:])"]
KILLS = 10


def begin(config: str, results: Path) -> "subprocess.Popen[bytes]":
    arguments = ["--config", config, "--results", str(results), "--jobs", "2"]
    return subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def main(seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        config = write_study(Path(folder), seeds=3)
        undisturbed, killed = Path(folder) / "undisturbed" / "results", Path(folder) / "killed" / "results"
        start = time.monotonic()
        assert begin(config, undisturbed).wait() == 0
        whole = time.monotonic() - start
        print(f"undisturbed: {whole:.0f} s, {len(markers(undisturbed))} runs")
        for number in range(KILLS):
            before, process = markers(killed), begin(config, killed)
            # Some kills from the start of the command, most from the start of its first run.
            while number > 1 and process.poll() is None and not list(killed.glob("runs/*.log")):
                time.sleep(0.02)
            moment = draw.uniform(0, whole / 4)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            after = markers(killed)
            assert before.items() <= after.items(), "a finished run was trained again"
            print(f"killed after {moment:5.1f} s: {len(after)} runs finished")
            for log in killed.glob("runs/*.log"):
                log.unlink()
        assert begin(config, killed).wait() == 0
        assert markers(killed).items() >= after.items(), "a finished run was trained again"
        assert content(killed) == content(undisturbed), "another report"
        print(f"the same {len(content(killed))} files as undisturbed, but for times")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
