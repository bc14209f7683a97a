"""Evaluation during a run: held-out loss, sheets, the best model, curves, TensorBoard."""

import dataclasses
import itertools
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.batches import DrawBatch
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine import board, curves
from omnimamba_cli.engine.checkpoint import load_directory
from omnimamba_cli.engine.session import Session
from omnimamba_cli.engine.training import Evaluated, Progress, StageSettings, train
from omnimamba_cli.errors import UsageError
from omnimamba_cli.train import metrics
from omnimamba_cli.train.held_out import HeldOutLanguage
from omnimamba_cli.train.language import Objective
from omnimamba_cli.train.loop_config import accelerator
from tests.train.conftest import Data, loop, stage, summed


def settings(data: Data, init: Path, output: Path, **changes: Any) -> StageSettings:
    """Both tasks, evaluated every second step on the data they train on."""
    held = {"eval_mmu": (data.talks,), "eval_t2i": (data.codes,), "eval_samples": 2}
    config = changes.pop("loop", loop(steps=4, eval_every=2, ema=0.5, lr=1e-2))
    return stage("both", data, init, output, loop=config, **held, **changes)


def evaluations(folder: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in metrics.read(folder / "metrics.jsonl")
        if "eval_loss" in line
    ]


def test_evaluations_leave_losses_sheets_curves_and_the_best_model(
    data: Data, tiny_model: Path, tmp_path: Path
) -> None:
    events = list(train(settings(data, tiny_model, tmp_path / "out")))
    seen = [e for e in events if isinstance(e, Evaluated)]
    assert [e.step for e in seen] == [2, 4]
    assert evaluations(tmp_path / "out") == [{"step": e.step, **e.values} for e in seen]
    for event in seen:
        assert event.values["eval_loss"] == pytest.approx(event.values["eval_loss_mmu"] + event.values["eval_loss_t2i"])
    lowest = min(e.values["eval_loss"] for e in seen)
    assert [e.best for e in seen] == [True, seen[1].values["eval_loss"] == lowest]
    names = {p.name for p in (tmp_path / "out" / "sheets").iterdir()}
    assert names == {f"{kind}-00000{step}.png" for kind in ("captions", "drawn") for step in (2, 4)}
    with Image.open(tmp_path / "out" / "sheets" / "drawn-000004.png") as sheet:
        assert len(sheet.convert("L").getcolors(1 << 16) or []) > 50
    curve = ET.parse(tmp_path / "out" / "curves.svg").getroot()
    words = {element.text for element in curve.iter("{http://www.w3.org/2000/svg}text")}
    assert {"loss", "eval_loss", "eval_loss_mmu", "loss_t2i"} <= words
    # of the last evaluation, whose weights are the result's
    best = load_file(tmp_path / "out" / "best" / "model.safetensors")
    result = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(best[name], result[name]) for name in result) == seen[1].best
    assert len(Session(tmp_path / "out" / "best", device="cpu").generate("a red house", seed=1)) == 1


def test_evaluating_does_not_change_what_is_trained(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    runs = []
    for every in (0, 1):
        held = {} if every else {"eval_mmu": (), "eval_t2i": ()}
        run = settings(data, tiny_model, tmp_path / str(every), loop=loop(steps=3, eval_every=every, ema=0.5))
        runs.append(dataclasses.replace(run, **held))
        list(train(runs[-1]))
    one, two = (load_file(run.output / "model.safetensors") for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_resumed_evaluations_have_no_doubles_and_know_the_best(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    config = loop(steps=6, eval_every=2, save_every=3, ema=0.5, lr=1e-2)
    whole = settings(data, tiny_model, tmp_path / "whole", loop=config)
    flags = [e.best for e in train(whole) if isinstance(e, Evaluated)]
    halves = dataclasses.replace(whole, output=tmp_path / "halves")
    for event in train(halves):  # killed right after the evaluation of step 4, a step behind the snapshot
        if isinstance(event, Evaluated) and event.step == 4:
            break
    resumed = [e.best for e in train(dataclasses.replace(halves, resume=True)) if isinstance(e, Evaluated)]
    assert resumed == flags[1:]
    assert evaluations(halves.output) == evaluations(whole.output)
    one, two = (load_file(r.output / "best" / "model.safetensors") for r in (whole, halves))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_held_out_loss_is_the_mean_over_targets_whatever_the_batch(
    data: Data, tiny_model: Path, tiny_config: ModelConfig
) -> None:
    files = load_directory(tiny_model, parts=("model",))
    assert files.model is not None
    plain = dataclasses.replace(tiny_config, caption_dropout=0.0)
    tokenizer = TextTokenizer.from_file(tiny_model / "tokenizer.json", tiny_config.text)
    drawings = DrawnCodes([data.codes], plain, tokenizer)
    objective = Objective(files.model, None, {"t2i": 2.0}).eval()
    found = []
    for rows in (2, 5):
        held = HeldOutLanguage(None, drawings, weights={"t2i": 2.0}, rows={"t2i": rows}, samples=5)
        with torch.no_grad():
            found.append(held.losses(objective, accelerator(torch.device("cpu"), "no")))
    indices = held.chosen("t2i")
    assert len(set(indices.tolist())) == 5
    with torch.no_grad():
        batch = DrawBatch(*drawings.rows(torch.arange(5).numpy(), indices))
        wanted = float(summed(objective, batch)) / batch.count
    for values in found:
        assert values["eval_loss_t2i"] == pytest.approx(wanted, rel=1e-5)
        assert values["eval_loss"] == pytest.approx(2 * wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({"eval_mmu": (), "eval_t2i": ()}, "--eval-mmu"), ({"loop": loop()}, "--eval-every")],
)
def test_evaluations_need_data_and_data_need_evaluations(
    changes: dict[str, Any], hint: str, data: Data, tiny_model: Path, tmp_path: Path
) -> None:
    run = dataclasses.replace(settings(data, tiny_model, tmp_path / "out"), **changes)
    with pytest.raises(UsageError) as caught:
        list(train(run))
    assert hint in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_held_out_pictures_in_place_of_codes_say_how_to_make_them(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(settings(data, tiny_model, tmp_path / "out"), eval_t2i=(data.captions,))
    with pytest.raises(UsageError, match=r"captions\.jsonl holds pictures, held-out drawings are read") as error:
        list(train(run))
    assert error.value.hint == f"omnimamba tokenize --data {data.captions} --vq MODEL -o held.jsonl"


def test_curves_of_one_line_and_of_none() -> None:
    line = {"step": 1, "loss": 2.0, "lr": 1e-3, "eval_loss": 0.0}
    for lines in ([], [line], [line, {**line, "step": 2}]):
        assert curves.shapes(lines)


class Writer:
    """Stands for TensorBoard's."""

    made: ClassVar["list[Writer]"] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.rows = folder, purge_step, list[tuple[str, float, int]]()
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.rows.append((name, value, step))

    def flush(self) -> None:
        pass


def test_tensorboard_gets_every_number(
    data: Data, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Writer.made.clear()
    monkeypatch.setattr(board, "summary_writer", lambda: Writer)
    monkeypatch.setattr("omnimamba_cli.engine.training.summary_writer", lambda: Writer)
    run = settings(data, tiny_model, tmp_path / "out", tensorboard=True, loop=loop(steps=2, eval_every=2))
    events = [e for e in train(run) if isinstance(e, Progress | Evaluated)]
    (writer,) = Writer.made
    assert (writer.folder, writer.purge_step) == (str(tmp_path / "out" / "tensorboard"), 1)
    assert writer.rows == [(n, v, e.step) for e in events for n, v in e.values.items()]
    rest = dataclasses.replace(run, resume=True, loop=loop(steps=3, eval_every=2))
    list(itertools.islice(train(rest), 1000))
    assert Writer.made[1].purge_step == 3


def test_tensorboard_that_is_absent_is_named_before_the_run(
    data: Data, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError) as caught:
        list(train(stage("t2i", data, tiny_model, tmp_path / "out", tensorboard=True)))
    assert caught.value.hint == "pip install tensorboard"
    assert not (tmp_path / "out").exists()
