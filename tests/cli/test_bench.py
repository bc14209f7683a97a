"""`omnimamba bench`: its options, its table, its JSON lines and its plot."""

import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli.engine.bench_systems import OmniMambaSystem
from omnimamba_cli.engine.bench_transformers import TransformerSystem
from tests.cli.conftest import Process, Run, environment

FIELDS = (
    "schema kind task system opponent what method method_means seq_len prefix batch ms_per_token tokens_per_s "
    "images_per_s seconds_total ttft_ms n median_ms spread_ms warmup_s build_s positions positions_ms "
    "positions_spread_ms positions_bytes peak_allocated_bytes peak_device_bytes peak_rss_bytes floor_s floor_fraction "
    "mfu weight_bytes context_bytes read_bytes_per_s flops_per_s dtype device device_name kernels versions "
    "paper_seconds notes error"
).split()


def small(tiny_model: Path, *more: str) -> tuple[str, ...]:
    return ("bench", "-m", str(tiny_model), "--device", "cpu", "--seq-len", "8", "--seconds", "1", *more)


def test_rows_are_json_lines_with_the_listed_fields(run: Run, tiny_model: Path) -> None:
    done = run(*small(tiny_model, "--json", "--baseline", "matched", "--batch", "2", "-q"))
    assert (done.code, done.err) == (0, "")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [r["system"] for r in rows] == ["tiny", "matched", "transformer-floor"]
    for r in rows:
        assert list(r) == FIELDS
        assert r["schema"] == 1
        assert r["batch"] == 2
        assert r["versions"]["torch"]


def test_people_get_a_table_that_says_what_was_measured_and_a_plot(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    done = run(*small(tiny_model, "--baseline", "none", "--plot", "speed.png"))
    assert done.code == 0
    assert done.out.startswith("system")
    assert "decode_text" in done.out
    assert "reads" in done.err
    assert Image.open(tmp_path / "speed.png").format == "PNG"


def test_benchmark_is_another_name(run: Run) -> None:
    assert run("benchmark", "--help").out.replace("benchmark", "bench") == run("bench", "--help").out.replace(
        "benchmark", "bench"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seq-len", "10,x"), "numbers from 2"),
        (("--seq-len", "1"), "numbers from 2"),
        (("--task", "image", "--seq-len", "9"), "fixed number of codes"),
        (("--task", "train", "--full"), "--full is for text"),
        (("--task", "train", "--quantize", "int8"), "whole weights"),
        (("--plot", "a.pdf"), "PNG or SVG"),
        (("--task", "image", "--plot", "a.png"), "pictures have one"),
        (("--baseline", "showo", "--device", "cpu"), "did you mean"),
        (("--baseline", "showo", "-m", "not there"), "did you mean"),
        (("--baseline", ""), "--baseline is empty"),
        (("--task", "stage2", "--baseline", "show-o"), "beside no baseline"),
        (("--plot", ""), "--plot '': plots are drawn"),
        (("--plot", "-"), "hint: --plot speed.svg"),
        (("--plot", "."), "hint: --plot speed.svg"),
    ],
)
def test_wrong_use_is_told_before_any_work(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run("bench", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert said in done.err


def test_an_existing_plot_is_kept_unless_forced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "speed.svg").write_text("mine")
    done = run("bench", "--plot", "speed.svg")
    assert done.code == 3
    assert (tmp_path / "speed.svg").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "hint"), [("1.3B", "did you mean '1.3b'?"), ("9z", "presets with random weights: 1.3b")]
)
def test_a_model_that_is_not_there_is_told_with_the_presets(run: Run, name: str, hint: str) -> None:
    done = run("bench", "-m", name, "--device", "cpu")
    assert done.code == 4
    assert f"hint: {hint}" in done.err


def test_the_table_says_on_what_in_what_and_by_which_kernels(run: Run, tiny_model: Path) -> None:
    done = run(*small(tiny_model, "--baseline", "none", "--batch", "3", "-q"))
    assert "float32, batch 3, on " in done.out
    assert f"torch {version('torch')}" in done.out
    assert "kernels: row_step cpu, all else torch" in done.out


def test_lengths_that_the_paper_does_not_speak_of_are_told_to_be_such(run: Run, tiny_model: Path) -> None:
    assert "none of these was measured here" in run(*small(tiny_model, "--baseline", "matched")).out
    assert "claims" not in run(*small(tiny_model, "--baseline", "none")).out


def test_a_small_model_has_the_paper_s_claims_beside_opponents_of_its_size(run: Run, tiny_model: Path) -> None:
    options = ("--seq-len", "16000", "--seconds", "1", "--baseline", "matched,matched-uncached", "-q")
    done = run("bench", "-m", str(tiny_model), "--device", "cpu", *options)
    assert "119.2 times as fast as show-o at 16,000 tokens: " in done.out
    assert "what tiny, a much smaller model, does here beside Transformers of its own size" in done.out
    done = run("bench", "-m", str(tiny_model), "--device", "cpu", *options, "--json")
    claim = json.loads(done.out.splitlines()[-1])
    assert (claim["kind"], claim["system"], set(claim["measured"])) == (
        "claim",
        "tiny",
        {"matched", "matched-uncached"},
    )


def test_what_was_measured_before_ctrl_c_is_shown(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: TransformerSystem, prefix: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformerSystem, "first_token", stopped)
    done = run(*small(tiny_model, "--baseline", "matched", "--plot", "speed.svg"))
    assert done.code == 130
    assert [line.split()[0] for line in done.out.splitlines()[:2]] == ["system", "tiny"]
    assert "claims" not in done.out
    assert not Path("speed.svg").exists()


@pytest.mark.parametrize("fails", ["all", "others"])
def test_only_a_run_without_any_measurement_is_an_error(
    run: Run, tiny_model: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(TransformerSystem, "first_token", exhausted)
    if fails == "all":
        monkeypatch.setattr(OmniMambaSystem, "first_token", exhausted)
    done = run(*small(tiny_model, "--baseline", "matched", "--json"))
    assert len(done.out.splitlines()) == 3
    if fails == "others":
        assert done.code == 0
    else:
        assert done.code == 5
        assert "error: nothing could be measured: tiny: out of memory" in done.err


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_preset_is_measured_where_triton_is_broken(process: Process, tmp_path: Path, error: str) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(f"raise {error}('libtriton.so: cannot open shared object file')")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    words = ("bench", "-m", "nano", "--device", "cpu", "--seq-len", "2", "--seconds", "1", "--baseline", "matched")
    done = process(*words, env=environment(PYTHONPATH=path))
    assert (done.returncode, done.stdout[:6]) == (0, b"system"), done.stderr


@pytest.mark.parametrize(
    ("task", "why"), [("text", "fastest on a CPU"), ("train", "training without a CUDA"), ("stage2", "training")]
)
def test_verbose_says_what_was_chosen_and_why(run: Run, tiny_model: Path, task: str, why: str) -> None:
    length = () if task == "stage2" else ("--seq-len", "4")
    more = ("--rows-mmu", "1", "--rows-t2i", "0") if task == "stage2" else ()
    options = ("--task", task, *length, *more, "--seconds", "1", "--baseline", "none", "-v")
    done = run("bench", "-m", str(tiny_model), "--device", "cpu", *options)
    assert done.code == 0, done.err
    assert "device  cpu  asked for" in done.err
    assert f"dtype   float32  {why}" in done.err
    assert "kernel  row_step: cpu  " in done.err
