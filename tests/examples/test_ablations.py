"""The ablation command: variants in small, stopped and gone on with; its plan, its table, its processes."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "picturebook"))

import ablation_data
import ablation_measure
import ablation_runs
import ablation_table
import ablations
import concepts
import palette
import parallel
import render
from ablation_plan import VARIANTS, Files, Options, Plan, write_json
from ablation_runs import Probe
from fetch import SETS
from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine.eval_set import Check, Prompt
from omnimamba_cli.engine.events import CaptionResult
from omnimamba_cli.engine.session import Session
from omnimamba_cli.engine.training import train
from omnimamba_cli.errors import OmniMambaError, UsageError
from omnimamba_cli.presets import PRESETS

TOY = "--preset tiny --captions 24 --talks 8 --held-out 4 --questions 2 --draw 2 --batch-t2i 4 --batch-mmu 2".split()
OPTIONS = Options(
    preset="tiny", parts="nano", captions=1, talks=1, held_out=1, batch_t2i=8, batch_mmu=4, lr=1e-3, ema=0.9,
    stage1_share=0.25, questions=1, draw=0, judge="nano",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _tiny(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    monkeypatch.setattr(ablation_runs, "interrupted", False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered cache of coloured discs: every sixth concept in every set."""
    y, x = np.mgrid[:128, :128]
    disc = (x - 63.5) ** 2 + (y - 63.5) ** 2 < 64**2
    plate = np.zeros((128, 128, 4), np.uint8)
    plate[disc] = (200, 60, 30, 255)
    listed = [(c.id, style) for style in SETS for c in concepts.load_concepts()[::6]]
    folder = tmp_path_factory.mktemp("pictures")
    np.save(folder / "pictures.npy", np.broadcast_to(plate, (len(listed), *plate.shape)))
    contrast = palette.contrasts(plate)
    entries = [{"concept": c, "set": s, "index": i, "contrast": contrast} for i, (c, s) in enumerate(listed)]
    text = json.dumps({"fingerprint": render.fingerprint(), "size_px": 128, "pictures": entries})
    (folder / "pictures.json").write_text(text)
    return folder


def plan(tmp_path: Path, **changes: Any) -> Plan:
    files = Files(**dict.fromkeys(Files.__dataclass_fields__, tmp_path))
    return Plan(**{"options": OPTIONS, "steps": 8, "out": tmp_path, "files": files, "device": "cpu", "workers": 0,
                   **changes})  # fmt: skip


# the whole, in small


def test_all_kinds_of_variants_stopped_gone_on_with_and_told(
    pictures: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = [str(pictures), str(out), "--seeds", "1", "--steps", "4", "--device", "cpu", *TOY]
    words += ["--parts", str(tiny_model), "--judge", str(tiny_model), "--variants", "neither", "joint"]
    assert ablations.main([*words, "--stop-minutes", "0.0001"]) == 0, "time is up before the first step"
    assert "2 of 2 runs are not done" in capsys.readouterr().err
    assert not list(out.glob("runs/*/result.json"))
    assert ablations.main(words) == 0
    table = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()] == ["| variant", "| ---", "| neither", "| joint"]
    runs = {run["variant"]: run for run in json.loads((out / "results.json").read_text())["runs"]}
    for name, run in runs.items():
        folder = out / "runs" / f"{name}-0"
        assert 0 <= run["answering"] <= 1
        assert 0 <= run["drawing"] <= 1
        # near the loss of a guess among 64 codes: four steps teach nothing
        assert run["drawing_loss"] == pytest.approx(np.log(64), rel=0.2)
        assert run["seconds"] > 0
        assert (folder / "drawn.png").is_file()
        assert (folder / "both" / "config.json").is_file()
        assert not (folder / "both" / "snapshots").exists()
        assert not (folder / "t2i").exists()
    assert runs["joint"]["parameters"] > runs["neither"]["parameters"]
    config = json.loads((out / "runs" / "neither-0" / "both" / "config.json").read_text())
    assert (config["vocabulary"], config["backbone"]["lora_rank"]) == ("shared", 0)

    def never(*_: object) -> None:
        raise AssertionError("what is done is not done again")

    monkeypatch.setattr(ablation_runs, "train", never)
    assert ablations.main(words) == 0
    assert capsys.readouterr().out == table
    assert ablations.main([*words, "--lr", "0.5"]) == 2
    assert "--lr 0.002, not 0.5" in capsys.readouterr().err


def test_a_probe_times_a_step_a_start_and_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    removed: list[Path] = []

    def run(settings: Any) -> Any:
        asked.append(settings)
        for step in (3, 6, 9, 12):
            yield ablation_runs.Progress(step=step, steps=12, values={"loss": 1.0}, seconds=2.0 * step)

    monkeypatch.setattr(ablation_runs, "train", run)
    monkeypatch.setattr(ablation_runs, "measure", lambda *_: {"measuring_seconds": 7.0})
    monkeypatch.setattr(ablation_runs.shutil, "rmtree", lambda folder, **_: removed.append(folder))
    found = ablation_runs.probe(plan(tmp_path))
    assert (found.step_s, found.measuring_s) == (2.0, 7.0)
    assert len(asked) == 2
    assert (asked[0].vocabulary, asked[0].lora, asked[0].task) == ("shared", "task", None)
    assert removed == [tmp_path / "probe"] * 2, "what an earlier call left, and its own"


# budgets


def test_every_variant_sees_the_same_samples(tmp_path: Path) -> None:
    seeds: dict[str, list[int]] = {}
    for name, variant in VARIANTS.items():
        seen = {"mmu": 0, "t2i": 0}
        for _, settings in ablation_runs.stages(plan(tmp_path, steps=11), variant, 3, tmp_path / name):
            for task in settings.tasks:
                seen[task] += settings.loop.steps * (settings.batch_mmu if task == "mmu" else settings.batch_t2i)
            seeds.setdefault(name, []).append(settings.loop.seed)
        assert seen == {"mmu": 11 * 4, "t2i": 11 * 8}, name
    assert seeds.pop("joint") == [30]
    # the last stage has an order of its own, or it would begin with what the first ones have seen
    assert {tuple(numbers) for numbers in seeds.values()} == {(30, 30, 31)}


def test_a_variant_is_made_in_its_first_stage_alone(tmp_path: Path) -> None:
    for name, variant in VARIANTS.items():
        first, *rest = [settings for _, settings in ablation_runs.stages(plan(tmp_path), variant, 0, tmp_path / name)]
        assert (first.init, first.vocabulary, first.lora) == ("tiny", variant.vocabulary, variant.lora)
        assert len(rest) == (0 if variant.joint else 2)
        for before, settings in zip([first, *rest], rest, strict=False):
            assert settings.init == str(before.output)
            assert (settings.vocabulary, settings.lora) == (None, None)


def test_steps_fill_the_time_evenly() -> None:
    found = Probe(step_s=0.5, start_s=2.0, measuring_s=4.0)
    steps = ablations.steps_for(found, 600, runs=5, processes=2)  # three rounds of 180 s
    assert steps == int((ablations.SHARE * 200 - 10) / 0.5)
    assert 3 * found.run_s(steps) <= 600 * ablations.SHARE < 3 * found.run_s(steps + 2)
    crowded = ablations.steps_for(found, 600, runs=5, processes=2, shared=2.0)  # two at a time on one GPU
    assert crowded == int((ablations.SHARE * 200 - 10) / 1.0)
    with pytest.raises(UsageError, match=r"0\.5 minutes are too few for 5 runs") as caught:
        ablations.steps_for(found, 30, runs=5, processes=2)
    minutes = float(str(caught.value.hint).split()[1])
    assert ablations.steps_for(found, 60 * minutes, runs=5, processes=2) >= ablations.FEWEST_STEPS


def test_a_probe_serves_again_where_nothing_else_changed(tmp_path: Path) -> None:
    found = Probe(step_s=0.5, start_s=2.0, measuring_s=4.0)
    assert ablations.read_probe(tmp_path, OPTIONS) is None
    write_json(tmp_path / "probe.json", {"options": asdict(OPTIONS), "probe": found.to_dict()})
    assert ablations.read_probe(tmp_path, OPTIONS) == found
    assert ablations.read_probe(tmp_path, replace(OPTIONS, batch_mmu=9)) is None


def test_a_plan_is_kept_and_other_options_are_refused(tmp_path: Path) -> None:
    assert ablations.read_plan(tmp_path, OPTIONS, 5) is None
    write_json(tmp_path / "plan.json", {"steps": 5, **asdict(OPTIONS)})
    assert ablations.read_plan(tmp_path, OPTIONS, None) == 5
    for options, steps, word in ((replace(OPTIONS, batch_mmu=9), 5, "--batch-mmu 4, not 9"), (OPTIONS, 6, "--steps 5")):
        with pytest.raises(UsageError, match=word):
            ablations.read_plan(tmp_path, options, steps)


def test_a_budget_must_be_given_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        ablations.parse([str(tmp_path), str(tmp_path)])
    for wrong in (["--steps", "1"], ["--steps", "9", "--seeds", "0"], ["--steps", "9", "--stage1-share", "1"]):
        with pytest.raises(SystemExit):
            ablations.parse([str(tmp_path), str(tmp_path), *wrong])
    write_json(tmp_path / "plan.json", {"steps": 5, **asdict(OPTIONS)})
    assert ablations.parse([str(tmp_path), str(tmp_path)]).steps is None


# data


def test_what_train_nano_made_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ablation_data, "_make", lambda args, command, *_, **__: asked.append(command))
    monkeypatch.setattr(ablation_data, "_tokenize", lambda args, captions, vq, codes: asked.append(str(vq)))
    monkeypatch.setattr(ablation_data, "DrawnCodes", lambda *_: None)
    monkeypatch.setattr(ablation_data.TextTokenizer, "from_file", lambda *_: None)
    made = tmp_path / "made"
    args = ablations.parse([str(tmp_path), str(tmp_path / "out"), "--steps", "2", "--made", str(made), *TOY])
    with pytest.raises(UsageError, match=r"codes\.jsonl is not there"):
        ablation_data.prepare(args)
    for name in ("codes.jsonl", "talks/mmu.json", "tokenizer.json", "tower/vision.safetensors", "vq/vq.safetensors"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).touch()
    files = ablation_data.prepare(args)
    assert (files.codes, files.talks) == (made / "codes.jsonl", made / "talks" / "mmu.json")
    assert (files.tokenizer, files.vision, files.vq) == (made / "tokenizer.json", made / "tower", made / "vq")
    assert asked == ["held-out", str(made / "vq"), "eval"]


# stopping


def test_a_signal_ends_all_runs_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []

    def stopped(settings: Any) -> Any:
        begun.append(settings.output)
        yield ablation_runs.Finished(step=1, steps=9, complete=False, reason="stopped by SIGINT")

    monkeypatch.setattr(ablation_runs, "train", stopped)
    assert ablation_runs.run(plan(tmp_path), "paper", 0) is None
    assert ablation_runs.run(plan(tmp_path), "paper", 1) is None
    assert begun == [tmp_path / "runs" / "paper-0" / "t2i"]


def test_the_time_that_is_left_limits_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def some(settings: Any) -> Any:
        limits.append(settings.loop.max_minutes)
        yield ablation_runs.Finished(step=1, steps=9, complete=False, reason="the minutes are over")

    monkeypatch.setattr(ablation_runs, "train", some)
    assert ablation_runs.run(plan(tmp_path, deadline=time.time() + 120), "joint", 0) is None
    assert ablation_runs.run(plan(tmp_path), "joint", 0) is None
    assert limits[0] == pytest.approx(2, abs=0.1)
    assert limits[1] == 0, "no limit"


# the table


def result(variant: str, seed: int, **changes: float | None) -> dict[str, Any]:
    numbers = dict.fromkeys((*ablation_table.METRICS, *ablation_table.OTHERS), 0.5)
    facts = {"device": "cpu", "versions": {"torch": "2"}, "date": "2026-01-02T00:00"}
    return {"variant": variant, "seed": seed, **numbers, **facts, **changes}


def test_the_table_has_means_and_spreads_over_seeds(tmp_path: Path) -> None:
    results = [result("joint", 1, naming=0.6, parameters=1234), result("joint", 0, naming=0.8, parameters=1234)]
    results.append(result("paper", 0, cycle=None))
    table = ablation_table.write(tmp_path, OPTIONS, 7, results)
    head, _, paper, joint = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]
    cells = dict(zip(head, joint, strict=True))
    assert (cells["variant"], cells["stages"], cells["seeds"]) == ("joint", "joint", "2")
    assert (cells["naming"], cells["trained parameters"]) == ("70.0% (14.1%)", "1,234")
    assert dict(zip(head, paper, strict=True))["cycle accuracy"] == "-"
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["variants"]["joint"]["naming"]["values"] == [0.8, 0.6]
    assert data["variants"]["paper"]["naming"]["std"] is None
    assert data["plan"] == {"steps": 7, **asdict(OPTIONS)}
    assert "7 steps of 8 drawings and 4 conversations" in (tmp_path / "table.md").read_text()


# processes


@pytest.mark.skipif(os.name == "nt", reason="runs a line of sh")
def test_each_process_has_a_gpu_of_its_own_and_errors_come_back(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.touch()
    # each waits until the other has come, so that one process cannot do both
    line = f"echo $CUDA_VISIBLE_DEVICES >> {seen}; for i in $(seq 600); do [ $(wc -l < {seen}) -lt 2 ] || exit 0; "
    with parallel.submitting(2, ["3", "5"]) as submit:
        waits = [submit(os.system, line + "sleep 0.1; done; exit 1") for _ in range(2)]
        assert [future.result() for future in waits] == [0, 0]
        error = submit(int, "x").exception()
    assert sorted(seen.read_text().split()) == ["3", "5"]
    assert isinstance(error, ValueError)


def in_haste(begun: Path, futures: list[Any]) -> None:
    """Hand out much work, and leave when the first of it has begun."""
    with parallel.submitting(2, []) as submit:
        futures += [submit(os.system, f"touch {begun}; sleep 0.3") for _ in range(20)]
        while not begun.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt


@pytest.mark.skipif(os.name == "nt", reason="runs a line of sh")
def test_a_pool_that_is_left_in_haste_ends_what_it_began_and_begins_no_more(tmp_path: Path) -> None:
    futures: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        in_haste(tmp_path / "begun", futures)
    assert futures[0].result() == 0
    assert futures[-1].cancelled()


def test_runs_end_between_their_stages_where_all_are_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        def is_set(self) -> bool:
            return True

    monkeypatch.setattr(parallel, "_stop", Asked())
    monkeypatch.setattr(ablation_runs, "train", None)  # would fail
    assert ablation_runs.run(plan(tmp_path), "paper", 0) is None


def test_one_process_works_here() -> None:
    def fail() -> None:
        raise OmniMambaError("no")

    work: Callable[[], int] = os.getpid
    with parallel.submitting(1, []) as submit:
        assert submit(work).result() == os.getpid()
        assert isinstance(submit(fail).exception(), OmniMambaError)


def test_gpus_are_those_that_are_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert ablations.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert ablations.visible_gpus() == ["4", "6"]


# what is measured


def test_the_loss_of_drawing_is_that_of_training_without_dropped_captions(
    tiny_model: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    from tests.train.conftest import Data, loop, stage

    codes = tmp_path / "codes.jsonl"
    rng = np.random.default_rng(0)
    rows = [{"tokens": rng.integers(0, 64, 64).tolist(), "captions": ["a red fox"]} for _ in range(5)]
    codes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ablation_measure.drawing_loss(tiny_model, codes, "cpu")
    data = Data(tmp_path, tmp_path, tmp_path, codes)
    still = loop(steps=1, lr=1e-12)
    settings = stage("t2i", data, tiny_model, tmp_path / "out", loop=still, batch_t2i=5, caption_dropout=0.0)
    (loss,) = [e.values["loss"] for e in train(settings) if isinstance(e, ablation_runs.Progress)]
    assert found == pytest.approx(loss, rel=1e-4)


def test_one_judge_answers_about_all_drawings(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    def said(images: list[Image.Image], questions: list[str], **_: Any) -> list[CaptionResult]:
        colours = {(255, 0, 0): "a fox", (0, 0, 255): "two dogs"}
        return [CaptionResult(colours[i.getpixel((0, 0))], "stop", 1, 0.0) for i in images]

    judge = Session(tiny_model, device="cpu")
    monkeypatch.setattr(judge, "captions", said)
    naming = Check(question="what is here?", answers=("a fox",))
    prompts = [Prompt("a fox", "one/x", (naming, Check("how many?", ("one",)))), Prompt("a fox", "one/x", (naming,))]
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert ablation_measure.judge_drawings(judge, images, prompts) == (1 / 3, 1 / 2)
    assert ablation_measure.judge_drawings(judge, [], []) == (None, None)
