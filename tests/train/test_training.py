"""Whole runs of every stage on a CPU: they learn, resume to the bit, and leave frozen parts alone."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.data.batches import Collate, DrawBatch
from omnimamba_cli.data.rejects import Bad
from omnimamba_cli.data.sequences import t2i_prefix
from omnimamba_cli.engine.session import Session
from omnimamba_cli.engine.training import Finished, Progress, StageSettings, train
from omnimamba_cli.errors import CheckpointError, InputError, UsageError
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.vision import VisionTowers
from omnimamba_cli.train.events import Note
from omnimamba_cli.train.language import LanguageJob, Objective, TaskBatches
from omnimamba_cli.train.loop import Loop
from omnimamba_cli.train.loop_config import accelerator
from omnimamba_cli.train.stages import trainable_names
from tests.train.conftest import Data, loop, stage, summed

KINDS = ("mmu", "t2i", "both")


def losses(settings: StageSettings) -> list[float]:
    return [event.values["loss"] for event in train(settings) if isinstance(event, Progress)]


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in found]


@pytest.mark.parametrize(("kind", "number", "task"), [("mmu", 1, "mmu"), ("t2i", 1, "t2i"), ("both", 2, None)])
def test_exactly_the_tables_names_change(
    kind: str, number: Any, task: Any, data: Data, tiny_model: Path, tmp_path: Path
) -> None:
    list(train(stage(kind, data, tiny_model, tmp_path / "out", questions=kind == "both")))
    before, after = (load_file(p / "model.safetensors") for p in (tiny_model, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == trainable_names(before, number, task)
    for name in ("vision.safetensors", "vq.safetensors"):
        assert (tiny_model / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    kind: str, data: Data, tiny_model: Path, tmp_path: Path
) -> None:
    config = loop(steps=6, ema=0.9, save_every=2, keep=9, log_every=3)
    whole = stage(kind, data, tiny_model, tmp_path / "whole", loop=config)
    list(train(whole))
    halves = dataclasses.replace(whole, output=tmp_path / "halves")
    for event in train(halves):  # killed after step 4's snapshot, a report behind it
        if isinstance(event, Progress) and event.step == 6:
            break
    assert not (halves.output / "config.json").exists()
    list(train(dataclasses.replace(halves, resume=True)))
    assert lines(whole.output) == lines(halves.output)
    for file in ("model.safetensors", "snapshots/step-00000006/state.safetensors"):
        one, two = (load_file(r.output / file) for r in (whole, halves))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_accumulation_equals_one_large_batch(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    runs = {}
    for parts in (1, 3):
        out = tmp_path / str(parts)
        settings = stage("both", data, tiny_model, out, loop=loop(accumulate=parts, steps=1), batch_mmu=5, batch_t2i=7)
        runs[parts] = losses(settings)  # LoRA starts at zero, so its dropout, drawn per micro-batch, has no effect
    assert runs[1] == pytest.approx(runs[3], rel=1e-5)


def test_stage_2_merges_two_results(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    for task in ("mmu", "t2i"):
        list(train(stage(task, data, tiny_model, tmp_path / task, loop=loop(steps=2))))
    halves = {"init_mmu": tmp_path / "mmu", "init_t2i": tmp_path / "t2i"}
    settings = stage("both", data, None, tmp_path / "both", loop=loop(steps=1), **halves)
    assert len(losses(settings)) == 1
    opened = stage("t2i", data, tiny_model, tmp_path / "open", loop=loop(steps=2), unfreeze=("backbone",))
    list(train(opened))
    with pytest.raises(CheckpointError, match=r"first: layers\.0\."):
        list(train(dataclasses.replace(settings, init_t2i=tmp_path / "open", output=tmp_path / "refused")))
    swapped = {"init_mmu": tmp_path / "t2i", "init_t2i": tmp_path / "mmu", "output": tmp_path / "refused"}
    with pytest.raises(CheckpointError, match=r"t2i is the result of stage 1 of t2i, not of mmu") as error:
        list(train(dataclasses.replace(settings, **swapped)))
    assert (error.value.hint or "").startswith(f"--init-t2i {tmp_path / 't2i'}")
    for half in halves.values():  # where nothing says what they are, they are taken as they are
        (half / "train.json").write_text("[]")
    assert len(losses(dataclasses.replace(settings, output=tmp_path / "taken"))) == 1


def test_trained_answers_come_out_of_the_session(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    settings = stage(
        "mmu", data, tiny_model, tmp_path / "out", loop=loop(steps=80, lr=1e-2), unfreeze=("all",), batch_mmu=8
    )
    list(train(settings))
    session = Session(tmp_path / "out", device="cpu")
    assert session.caption(data.folder / "0.png", "what is here?") == "a red house"
    assert session.caption(data.folder / "6.png", "what is here?") == "a blue house"


def test_batch_without_targets_gives_zero_and_no_nan(tiny_config: ModelConfig, tmp_path: Path) -> None:
    objective = Objective(OmniMamba(tiny_config), None, {"mmu": 1.0})
    micro = TaskBatches({"mmu": Collate(tiny_config)([Bad("x", "unreadable")])})
    job = LanguageJob(objective, device=torch.device("cpu"), seed=0, rows={"mmu": 1}, talks=None, drawings=None)
    totals = Loop(job, loop(), accelerator(torch.device("cpu"), "no"), tmp_path)._totals([micro])
    values = objective(micro, totals)
    values["loss"].backward()
    assert values["loss"].item() == 0.0
    assert all(math.isfinite(p.grad.sum().item()) for p in objective.parameters() if p.grad is not None)


def test_time_limit_saves_and_stops_and_resume_finishes(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    short = stage("t2i", data, tiny_model, tmp_path / "out", loop=loop(steps=500, max_minutes=0.02))
    last = list(train(short))[-1]
    assert isinstance(last, Finished)
    assert not last.complete
    assert "max-minutes" in last.reason
    assert 0 < last.step < 500
    rest = dataclasses.replace(short, resume=True, loop=loop(steps=last.step + 2))
    assert list(train(rest))[-1].complete


def test_a_run_that_diverged_ends_before_its_snapshots_are_lost(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    def settings(**changes: Any) -> StageSettings:
        config = loop(save_every=2, **changes)
        return stage("both", data, tiny_model, tmp_path / "out", resume=True, loop=config)

    list(train(settings(steps=4)))
    with pytest.raises(UsageError, match=r"grad_norm is nan at step \d+: training has diverged") as error:
        list(train(settings(steps=50, log_every=100, lr=1e30)))
    assert (error.value.hint or "").startswith("lower --lr, then --resume")
    events = list(train(settings(steps=8)))
    losses = [e.values["loss"] for e in events if isinstance(e, Progress)]
    assert len(losses) >= 2
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize(("name", "value"), [("clip", 0.0), ("clip", -1.0), ("clip", math.nan), ("lr", math.inf)])
def test_a_run_that_would_learn_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is .*; it must be above 0"):
        loop(**{name: value})


def test_the_curve_can_follow_the_clock(
    data: Data, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0, 2)  # seconds
    monkeypatch.setattr("omnimamba_cli.train.loop.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    config = loop(steps=1000, warmup=2, lr=1e-3, clock_minutes=2.0)
    *_, last = train(stage("t2i", data, tiny_model, tmp_path / "out", loop=config))
    assert isinstance(last, Finished)
    assert last.complete
    assert last.step < 60
    assert "clock-minutes" in last.reason
    rates = [line["lr"] for line in lines(tmp_path / "out")]
    assert rates[1] == pytest.approx(1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.05e-3


def test_existing_run_is_refused_and_force_starts_anew(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    settings = stage("t2i", data, tiny_model, tmp_path / "out", loop=loop(steps=1))
    list(train(settings))
    with pytest.raises(InputError, match="holds a run"):
        list(train(settings))
    assert len(losses(dataclasses.replace(settings, force=True))) == 1
    assert [line["step"] for line in lines(tmp_path / "out")] == [1]


def test_resume_with_another_start_is_refused(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    settings = stage("t2i", data, tiny_model, tmp_path / "out", loop=loop(steps=1))
    list(train(settings))
    with pytest.raises(InputError, match="trains other tensors"):
        list(train(dataclasses.replace(settings, resume=True, unfreeze=("backbone",))))


def test_resume_says_which_settings_are_others(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    settings = stage("both", data, tiny_model, tmp_path / "out", loop=loop(steps=2, save_every=1))
    list(train(settings))

    def said(changed: StageSettings) -> list[str]:
        notes = [e.text for e in train(dataclasses.replace(changed, resume=True)) if isinstance(e, Note)]
        return [text for text in notes if text.startswith("other settings")]

    assert said(dataclasses.replace(settings, workers=1)) == []
    other = dataclasses.replace(settings, batch_t2i=settings.batch_t2i + 1, loop=loop(steps=3, save_every=1, seed=5))
    (text,) = said(other)
    assert "steps 3 (was 2), seed 5 (was 0)" in text
    assert f"batch_t2i {settings.batch_t2i + 1} (was {settings.batch_t2i})" in text
    assert said(other) == [], "they are the run's own now"


def test_fresh_model_needs_its_files(data: Data, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tokenizer"):
        list(train(stage("t2i", data, "nano", tmp_path / "out")))


def test_text_only_and_picture_rows_share_a_batch(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    messages = [{"from": "human", "value": "who are you?"}, {"from": "gpt", "value": "a small model"}]
    rows = [*json.loads(data.talks.read_text())[:3], {"id": "t", "conversations": messages}]
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps(rows))
    settings = stage(
        "mmu",
        data,
        tiny_model,
        tmp_path / "out",
        data_mmu=(mixed,),
        image_root=data.folder,
        loop=loop(steps=40, lr=1e-2),
        unfreeze=("all",),
    )
    assert losses(settings)[-1] < 0.5


def test_narrowed_towers_are_no_part_of_what_is_saved(tiny_config: ModelConfig) -> None:
    objective = Objective(OmniMamba(tiny_config), VisionTowers(tiny_config.towers), {"mmu": 1.0})
    names = set(objective.state_dict())
    side = tiny_config.vision_image_size
    with torch.autocast("cpu", torch.bfloat16):
        objective.look(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    assert objective.narrowed
    assert set(objective.state_dict()) == names
    assert all(t.dtype == torch.float32 for t in objective.parameters())


def test_drawing_loss_is_that_of_decoding_code_by_code(tiny_config: ModelConfig) -> None:
    model = OmniMamba(tiny_config).eval()
    generator = torch.Generator().manual_seed(0)
    prefix = torch.tensor([t2i_prefix(tiny_config, [5, 6, 7]), t2i_prefix(tiny_config, [])], dtype=torch.int32)
    codes = torch.randint(tiny_config.vq.codebook_size, (2, tiny_config.vq.codes), generator=generator)
    with torch.no_grad():
        found = summed(Objective(model, None, {"t2i": 1.0}), DrawBatch(prefix, codes.int()))
        state = model.new_state(2)
        hidden = model(model.embed_caption(prefix), "t2i", state)[:, -1]
        wanted = torch.zeros(())
        for i in range(tiny_config.vq.codes):
            wanted += torch.nn.functional.cross_entropy(model.logits(hidden, "t2i"), codes[:, i], reduction="sum")
            hidden = model(model.embed_codes(codes[:, i : i + 1]), "t2i", state)[:, -1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_is_learnt_to_near_zero(kind: str, data: Data, tiny_model: Path, tmp_path: Path) -> None:
    """The same two rows at every step, every part open: what is left of the loss is next to nothing."""
    rows = json.loads(data.talks.read_text())[:2]
    codes = [json.loads(line) for line in data.codes.read_text().splitlines()][:2]
    talks, drawings = tmp_path / "talks.json", tmp_path / "codes.jsonl"
    talks.write_text(json.dumps(rows))
    drawings.write_text("".join(json.dumps({**row, "captions": row["captions"][:1]}) + "\n" for row in codes))
    settings = stage(
        kind,
        data,
        tiny_model,
        tmp_path / "out",
        image_root=data.folder,
        unfreeze=("all",),
        batch_mmu=2,
        batch_t2i=2,
        caption_dropout=0.0,
        loop=loop(steps=70, lr=1e-2, warmup=5, log_every=69),
    )
    changes = {"data_mmu": settings.data_mmu and (talks,), "data_t2i": settings.data_t2i and (drawings,)}
    found = losses(dataclasses.replace(settings, **changes))
    assert found[-1] < 0.1 < found[0]


def test_recomputed_activations_change_no_bit(data: Data, tiny_model: Path, tmp_path: Path) -> None:
    results = []
    for recompute in (False, True):
        out = tmp_path / str(recompute)
        list(train(stage("both", data, tiny_model, out, loop=loop(steps=3), checkpoint_activations=recompute)))
        results.append((lines(out), load_file(out / "model.safetensors")))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_recomputing_keeps_less(tiny_config: ModelConfig) -> None:
    """Bytes that autograd holds on to between forward and backward."""
    model = OmniMamba(tiny_config).train()
    kept = {}
    for recompute in (False, True):
        saved: dict[int, int] = {}

        def note(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.zeros(2, 64, tiny_config.backbone.d_model)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            model.together({"t2i": x}, recompute=recompute)["t2i"].sum().backward()
        kept[recompute] = sum(saved.values())
    assert kept[True] < kept[False] / 3
