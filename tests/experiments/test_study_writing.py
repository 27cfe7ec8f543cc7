"""What a report may remove: the files that the last one has written, in its own two folders."""

import json
from pathlib import Path

from lightning_same.experiments.study.identity import checksum
from lightning_same.experiments.study.writing import WRITTEN, replace_files


def test_a_list_that_leads_elsewhere_removes_nothing(tmp_path: Path) -> None:
    """Though the files are as the list says."""
    results = tmp_path / "results"
    names = ["mine.csv", "../mine.csv", "notes/mine.csv", "runs/mine.csv", "tables/../mine.csv", "tables/old/mine.csv"]
    for name in (*names, "tables/written.csv"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text("mine")
    (results / WRITTEN).write_text(json.dumps(dict.fromkeys([*names, "tables/written.csv"], checksum("mine"))))
    replace_files(results, {"tables/new.csv": "1"})
    assert [(results / name).read_text() for name in names] == ["mine"] * len(names)
    assert {path.name for path in (results / "tables").iterdir()} == {"old", "new.csv"}
