"""Several processes: what they train together is what one process trains alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.train.conftest import Data

STAGE2 = "train-stage2 --steps 4 --lr 1e-3 --batch-mmu 5 --batch-t2i 3 --log-every 1 --device cpu --dtype fp32 -q"
HELD_OUT = "--eval-every 2 --eval-samples 5"


def run(data: Data, init: Path, output: Path, launcher: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "-m", "omnimamba_cli", *STAGE2.split(), "--workers", "0"]
    command += [*HELD_OUT.split(), "--eval-mmu", str(data.talks), "--eval-t2i", str(data.codes)]
    command += ["--init", str(init), "--data-mmu", str(data.talks), "--data-t2i", str(data.codes), "-o", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_equal_one_on_the_same_global_batch(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    init = shutil.copytree(tiny_model, tmp_path / "init")
    config = json.loads((init / "config.json").read_text())
    config["backbone"]["lora_dropout"] = 0.0  # processes draw their own random numbers
    (init / "config.json").write_text(json.dumps(config))
    alone = run(data, init, tmp_path / "one", [])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together = run(data, init, tmp_path / "two", torchrun)
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, together.stderr
    assert "destroy_process_group" not in together.stderr  # torch's word on a group that was left standing
    assert together.stdout == f"{tmp_path / 'two'}\n"  # one process speaks
    assert {p.name for p in (tmp_path / "two" / "sheets").iterdir()} >= {"captions-000004.png", "drawn-000004.png"}
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    start = load_file(tiny_model / "model.safetensors")
    moved = sum((one[name] - start[name].float()).norm() ** 2 for name in one) ** 0.5
    apart = sum((one[name] - two[name]).norm() ** 2 for name in one) ** 0.5
    assert moved > 0.1
    # unequal shares of rows and targets, summed in another order
    assert apart < 1e-3 * moved
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 4 + 2
    losses = [[v for line in log for k, v in json.loads(line).items() if "loss" in k] for log in logs]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=0)
