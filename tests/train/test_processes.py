"""Several processes: what they train together is what one process trains alone."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import Data

ROOT = Path(__file__).resolve().parents[2]
STAGE2 = (
    "train-stage2 --steps 4 --lr 1e-3 --batch-mmu 5 --batch-t2i 3 --ema 0.5 --log-every 1 --save-every 2 --keep 9 "
    "--eval-every 2 --eval-samples 5 --workers 0 --device cpu --dtype fp32"
)

# accelerate offers FSDP on GPUs alone; told that CPU processes are some, it shards on them too
SHARDED = """
import os, sys
os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP")
os.environ.update(FSDP_CPU_RAM_EFFICIENT_LOADING="false", FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT")
from accelerate.state import PartialState
from accelerate.utils import DistributedType
begin = PartialState.__init__
def told(self, *given, **options):
    begin(self, *given, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = told
from omnimamba_cli.cli.app import main
from omnimamba_cli.train import loop, sharding
built = loop.Loop.__init__
def checked(self, *given, **options):
    built(self, *given, **options)
    assert self.sharded and all(isinstance(p, sharding.DTensor) for p in self.parameters.values())
loop.Loop.__init__ = checked
sys.exit(main(sys.argv[1:]))
"""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
PLAIN = ("-m", "omnimamba_cli")


@dataclass(frozen=True)
class Runs:
    """The same run by one process and by others, in folders of their own."""

    folder: Path
    data: Data

    def start(self, name: str, launcher: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        """Run or resume; the process must end well."""
        command = [sys.executable, *launcher, *STAGE2.split(), "--resume", "--init", str(self.folder / "init")]
        for task, file in (("mmu", self.data.talks), ("t2i", self.data.codes)):
            command += [f"--data-{task}", str(file), f"--eval-{task}", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, "-o", str(self.folder / name)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{self.folder / name}\n"  # one process speaks
        assert "destroy_process_group" not in done.stderr  # torch's word on a group that was left standing
        return done

    def check(self, name: str) -> None:
        """What came out is what one process made, up to the order of sums."""
        one, two = (load_file(self.folder / run / "model.safetensors") for run in ("alone", name))
        start = load_file(self.folder / "init" / "model.safetensors")
        moved = sum((one[name] - start[name].float()).norm() ** 2 for name in one) ** 0.5
        apart = sum((one[name] - two[name]).norm() ** 2 for name in one) ** 0.5
        assert moved > 0.1
        # unequal shares of rows and targets, summed in another order
        assert apart < 1e-3 * moved
        logs = [(self.folder / run / "metrics.jsonl").read_text().splitlines() for run in ("alone", name)]
        assert len(logs[0]) == len(logs[1]) == 4 + 2
        losses = [[v for line in log for k, v in json.loads(line).items() if "loss" in k] for log in logs]
        torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=0)


@pytest.fixture(scope="module")
def runs(data: Data, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One process has run."""
    folder = tmp_path_factory.mktemp("processes")
    init = shutil.copytree(tiny_model, folder / "init")
    config = json.loads((init / "config.json").read_text())
    config["backbone"]["lora_dropout"] = 0.0  # processes draw their own random numbers
    (init / "config.json").write_text(json.dumps(config))
    runs = Runs(folder, data)
    runs.start("alone", PLAIN)
    return runs


def test_two_processes_equal_one_on_the_same_global_batch(runs: Runs) -> None:
    runs.start("two", (*TORCHRUN, *PLAIN))
    runs.check("two")
    assert {p.name for p in (runs.folder / "two" / "sheets").iterdir()} >= {"captions-000004.png", "drawn-000004.png"}


def test_two_processes_with_shards_equal_one_and_resume(runs: Runs, tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    runs.start("shards", (*TORCHRUN, str(script)))
    runs.check("shards")
    output = runs.folder / "shards"
    (output / "model.safetensors").unlink()
    shutil.rmtree(output / "snapshots" / "step-00000004")
    done = runs.start("shards", (*TORCHRUN, str(script)))
    assert "resumed at step 2" in done.stderr
    runs.check("shards")
