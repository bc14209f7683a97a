"""Bad samples, pictures as drawings and shards over several processes and over a break: the same batches."""

import dataclasses
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from omnimamba_cli.engine.training import Progress, train
from tests.cli.conftest import environment
from tests.train.conftest import Data, loop, stage

RUN = "train-stage2 --steps 8 --lr 1e-3 --batch-mmu 4 --batch-t2i 4 --log-every 4 --device cpu --dtype fp32 --workers 0"


def run(launcher: list[str], arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *launcher, "-m", "omnimamba_cli", *RUN.split(), *arguments]
    changed = environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    return subprocess.run(command, env=changed, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_skip_and_draw_what_one_does(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    init = shutil.copytree(tiny_model, tmp_path / "init")
    config = json.loads((init / "config.json").read_text())
    config["backbone"]["lora_dropout"] = 0.0  # processes draw their own random numbers
    (init / "config.json").write_text(json.dumps(config))
    cut = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    rows = json.loads(data.talks.read_text()) * 4
    rows = [{**row, "image": str(cut if i in (3, 20) else data.folder / row["image"])} for i, row in enumerate(rows)]
    talks = tmp_path / "talks.json"
    talks.write_text(json.dumps(rows))
    common = ["--init", str(init), "--data-mmu", str(talks), "--data-t2i", str(data.captions), "--max-bad-share", "0.2"]
    common += ["--image-root", str(data.folder)]
    alone = run([], [*common, "-o", str(tmp_path / "one")])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together = run(torchrun, [*common, "-o", str(tmp_path / "two")])
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, together.stderr
    for done in (alone, together):  # each sample once, whichever process met it
        assert done.stderr.count("skipped talks.json[4]: ") == 1
        assert done.stderr.count("skipped talks.json[21]: ") == 1
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    reports = [[json.loads(line) for line in log] for log in logs]
    assert [r["skipped"] for r in reports[0]] == [r["skipped"] for r in reports[1]]
    assert reports[0][-1]["skipped"] == 2  # an epoch
    losses = [torch.tensor([r["loss"] for r in report]) for report in reports]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["mmu", "t2i"])
def test_a_run_over_shards_resumes_to_the_bit(kind: str, data: Data, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="webdataset is not installed")
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for i in range(4 * number, 4 * number + 4):
                tar.add(data.folder / f"{i}.png", f"{i}.png")
                text = tmp_path / "text"
                text.write_text("\n".join(json.loads(data.captions.read_text().splitlines()[i])["captions"]))
                tar.add(text, f"{i}.txt")
    config = loop(steps=6, save_every=2, keep=9)
    shards = (tmp_path / "{0..1}.tar",)
    whole = stage(kind, data, tiny_model, tmp_path / "whole", data_mmu=shards, data_t2i=shards, loop=config)
    losses = [event.values["loss"] for event in train(whole) if isinstance(event, Progress)]
    assert len(set(losses)) == 6
    halves = dataclasses.replace(whole, output=tmp_path / "halves", workers=1)
    for event in train(halves):
        if isinstance(event, Progress) and event.step == 5:
            break
    again = [e.values["loss"] for e in train(dataclasses.replace(halves, resume=True)) if isinstance(e, Progress)]
    assert again == losses[4:]
    one, two = (load_file(s.output / "model.safetensors") for s in (whole, halves))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_shards_and_files_are_not_mixed(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    from omnimamba_cli.errors import UsageError

    settings = stage("mmu", data, tiny_model, tmp_path / "out", data_mmu=(data.talks, tmp_path / "a.tar"))
    with pytest.raises(UsageError, match="cannot be mixed"):
        list(train(settings))
