"""Several nodes need nothing of ours: two groups of torchrun on one machine, of two processes each."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.fits import differences, fit
from support.nets import Plain, build, float64
from support.paths import DOCS, ROOT
from support.speed import slowness
from support.studies import write_study
from torch import Tensor

from lightning_same import SAME, with_sam

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys
sys.path[:0] = {path!r}
import support.environment, torch
from lightning.pytorch.strategies import DDPStrategy
from support.nets import Plain, build, float64
from support.fits import fit
from lightning_same import SAME, with_sam

options = {{}}
if "WORLD_SIZE" in os.environ:
    options = dict(num_nodes=2, devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
    torch.distributed.init_process_group("gloo")
with float64():
    module = with_sam(build(Plain), SAME(1, 2.0, 0.3))
    made = fit(module, **options)
assert made.global_step == 12
node = os.environ.get("GROUP_RANK", "0")
torch.save([param.detach() for param in module.parameters()], f"{folder}/{{node}}-{{made.local_rank}}.pt")
"""


def test_two_nodes_of_two_processes_are_one_process(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(path=sys.path, folder=str(tmp_path)))
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    nodes = [
        subprocess.Popen([*launch, "--node-rank", str(rank), str(script)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for node in nodes:
        _, error = node.communicate(timeout=240 * slowness())
        assert node.returncode == 0, error.decode()[-2000:]
    weights: dict[str, list[Tensor]] = {file.stem: torch.load(file) for file in sorted(tmp_path.glob("*.pt"))}
    assert list(weights) == ["0-0", "0-1", "1-0", "1-1"]
    alone = one_process()
    for each in weights.values():
        assert differences(each, weights["0-0"]) == []
        for a, b in zip(each, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def one_process() -> list[Tensor]:
    with float64():
        module = with_sam(build(Plain), SAME(1, 2.0, 0.3))
        fit(module)
    return [param.detach() for param in module.parameters()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def documented(name: str) -> list[str]:
    """The words of a command in the page on several machines, for nodes of one device."""
    page = (DOCS / "several_machines.md").read_text()
    (block,) = re.findall(rf"<!-- {name} -->\n```bash\n(.*?)```", page, re.DOTALL)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line and line[0] != "#"]
    assert len(lines) == 1
    return [{"4": "1", "config.yaml": "base.yaml"}.get(word, word) for word in shlex.split(lines[0])]


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_the_commands_of_the_page_train_on_two_nodes(launcher: str, tmp_path: Path) -> None:
    """Where there is no Slurm, the processes get the variables that srun sets."""
    write_study(tmp_path)
    port = str(free_port())
    nodes = []
    for rank in range(2):
        words = documented(launcher)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if launcher == "torchrun":
            program, *words = words
            assert program == "torchrun"
            given = {"--node-rank": str(rank), "--master-addr": "127.0.0.1", "--master-port": port}
            for name, value in given.items():
                words[words.index(name) + 1] = value
            command = [sys.executable, "-m", "torch.distributed.run", *words]
        else:
            assert words[:2] == ["srun", "lightning-same"]
            command = [sys.executable, "-m", "lightning_same", *words[2:]]
            environment |= {"MASTER_PORT": port, "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2"}
            environment |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "localhost"}
            environment |= {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
            environment |= {"SLURM_NODELIST": "localhost"}
        command += ["--trainer.max_epochs=1", "--sam=SAM", "--trainer.logger=CSVLogger"]
        command += ["--trainer.logger.save_dir=logs", "--trainer.enable_progress_bar=false"]
        nodes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
    errors = []
    for node in nodes:
        errors.append(node.communicate(timeout=240 * slowness())[1])
        assert node.returncode == 0, errors[-1][-3000:]
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in errors[1]
    (metrics,) = tmp_path.glob("logs/lightning_logs/version_*/metrics.csv")
    assert pd.read_csv(metrics)["val/accuracy"].notna().any()
