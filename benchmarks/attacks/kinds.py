"""All kinds of attacks, and how many of the cases are theirs."""

from pathlib import Path

from hypothesis import strategies as st

from attacks.studies import (
    attack_dry_run,
    attack_results,
    attack_study_file,
    results_damage,
    study_files,
    write_results,
)
from attacks.training import (
    MONITORS,
    RULES,
    arguments,
    attack_images,
    attack_labels,
    attack_monitor,
    attack_plot,
    attack_resume,
    attack_rule,
    attack_sharpness,
    checkpoint_files,
    label_files,
    metrics,
    write_checkpoint,
)
from attacks.values import FILES, Attack
from lightning_same.experiments.study.errors import StudyError


def attacks(shared: Path) -> list[Attack]:
    """All kinds; what they have in common is written to a folder once."""
    config, made = write_results(shared, shared / "results")
    whole = shared / "whole.ckpt"
    write_checkpoint(whole)
    refusals = (ValueError, TypeError, RuntimeError)
    which = st.tuples(st.sampled_from(["train", "t10k"]), st.sampled_from(["images-idx3", "labels-idx1"]))
    folders = results_damage()
    return [
        Attack("study files", 0.33, study_files(), attack_study_file, (StudyError,)),
        Attack("study files, dry run", 0.03, study_files(), attack_dry_run),
        Attack("results", 0.2, folders, attack_results(shared / "results", config, made, report=False), (StudyError,)),
        Attack("results, report", 0.02, folders, attack_results(shared / "results", config, made, report=True)),
        Attack("image files", 0.06, st.tuples(which, st.booleans(), FILES), attack_images, (ValueError, OSError)),
        Attack("label files", 0.06, label_files(), attack_labels, (ValueError,)),
        Attack("rule arguments", 0.15, arguments(RULES), attack_rule, refusals),
        Attack("monitor arguments", 0.06, arguments(MONITORS), attack_monitor, refusals),
        Attack("checkpoint files, resumed", 0.05, checkpoint_files(), attack_resume(whole)),
        Attack("checkpoint files, sharpness", 0.02, checkpoint_files(), attack_sharpness(whole)),
        Attack("plots", 0.02, metrics(), attack_plot),
    ]
