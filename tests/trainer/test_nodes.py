"""Several nodes need nothing of ours: two groups of torchrun on one machine, of two processes each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from support.fits import differences, fit
from support.nets import Plain, build, float64
from support.speed import slowness
from torch import Tensor

from lightning_same import SAME, with_sam

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
