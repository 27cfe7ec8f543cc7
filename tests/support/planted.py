"""Studies whose numbers are planted."""

from typing import Any

from lightning_same.experiments.study.plan import Run, Study

EPOCHS = 20


PHASE = 0.25  # five epochs


def run_of(method: str, seed: int, settings: dict[str, Any] | None = None, sam: Any = None) -> Run:
    name = "_".join([method, *(f"{key}={value}" for key, value in (settings or {}).items()), str(seed)])
    if method == "SAM":
        sam = {"class_path": "SAM"}
    return Run(name.replace(" ", "-"), method, settings or {}, seed, {"sam": sam})


def study_of(runs: list[Run], **options: Any) -> Study:
    planned = {"name": "planted", "description": "", "reference": "SAM", "early": PHASE, "late": PHASE, "threads": 1}
    return Study(**(planned | options), runs=runs)


def same(ckpt: int) -> dict[str, Any]:
    return {"class_path": "SAME", "init_args": {"ckpt": ckpt, "condition": 2.0}}
