"""`omnimamba bench`: its options, its table, its JSON lines and its plot."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run

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
