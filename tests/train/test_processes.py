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
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from omnimamba_cli.errors import UsageError
from omnimamba_cli.train.loop_config import check_kind
from tests.train.conftest import Data

ROOT = Path(__file__).resolve().parents[2]
STAGE2 = (
    "train-stage2 --steps 4 --lr 1e-3 --batch-mmu 5 --batch-t2i 3 --ema 0.5 --log-every 1 --save-every 2 --keep 9 "
    "--eval-every 2 --eval-samples 5 --workers 0 --device cpu --dtype fp32"
)

# Both ways one after the other: starting a process takes longer than these runs. accelerate offers FSDP on GPUs alone;
# told that CPU processes are some, it shards on them too.
TOGETHER = """
import os, shutil, sys
from pathlib import Path
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from omnimamba_cli.cli.app import main
from omnimamba_cli.train import loop, sharding

folder, options = Path(sys.argv[1]), sys.argv[2:]
end, built = loop.Loop.end, loop.Loop.__init__
loop.Loop.end = lambda self: self.accelerate.wait_for_everyone()  # a group cannot begin twice
assert main([*options, "-o", str(folder / "two")]) == 0

os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP")
os.environ.update(FSDP_CPU_RAM_EFFICIENT_LOADING="false", FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT")
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

def checked(self, *given, **options):
    built(self, *given, **options)
    assert self.sharded and all(isinstance(p, sharding.DTensor) for p in self.parameters.values())

loop.Loop.__init__ = checked
assert main([*options, "-o", str(folder / "shards")]) == 0
loop.Loop.end = end
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
if os.environ["RANK"] == "0":
    shutil.copytree(folder / "shards", folder / "resumed")
    (folder / "resumed" / "model.safetensors").unlink()
    shutil.rmtree(folder / "resumed" / "snapshots" / "step-00000004")
sys.exit(main([*options, "-o", str(folder / "resumed")]))
"""


@dataclass(frozen=True)
class Runs:
    """The same run by one process and by others, in folders of their own."""

    folder: Path
    words: str  # on stderr of two processes

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


def started(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A process that must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, *map(str, command)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def runs(data: Data, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All of them."""
    folder = tmp_path_factory.mktemp("processes")
    init = shutil.copytree(tiny_model, folder / "init")
    config = json.loads((init / "config.json").read_text())
    config["backbone"]["lora_dropout"] = 0.0  # processes draw their own random numbers
    (init / "config.json").write_text(json.dumps(config))
    options: list[str | Path] = [*STAGE2.split(), "--resume", "--init", init]
    for task, file in (("mmu", data.talks), ("t2i", data.codes)):
        options += [f"--data-{task}", file, f"--eval-{task}", file]
    started("-m", "omnimamba_cli", *options, "-o", folder / "alone")
    script = folder / "together.py"
    script.write_text(TOGETHER)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = started(*torchrun, script, folder, *options)
    names = ("two", "shards", "resumed")
    assert done.stdout == "".join(f"{folder / name}\n" for name in names)  # one process speaks
    return Runs(folder, done.stderr)


@pytest.mark.parametrize("name", ["two", "shards", "resumed"])
def test_two_processes_equal_one_on_the_same_global_batch(name: str, runs: Runs) -> None:
    runs.check(name)


def test_processes_leave_their_group_and_the_first_draws(runs: Runs) -> None:
    assert "destroy_process_group" not in runs.words  # torch's word on a group that was left standing
    assert "resumed at step 2" in runs.words
    assert {p.name for p in (runs.folder / "two" / "sheets").iterdir()} >= {"captions-000004.png", "drawn-000004.png"}


@pytest.mark.parametrize(
    ("kind", "fsdp2", "hint"),
    [
        (DistributedType.FSDP, False, "fsdp_version: 2"),
        (DistributedType.DEEPSPEED, False, "--multi_gpu"),
    ],
)
def test_ways_without_whole_snapshots_are_refused(kind: DistributedType, fsdp2: bool, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_kind(kind, fsdp2=fsdp2)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.FSDP])
def test_the_others_are_not(kind: DistributedType) -> None:
    check_kind(kind, fsdp2=True)
