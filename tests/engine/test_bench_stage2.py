"""The stage-2 step as a benchmark: what it measures, and what it counts."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine import bench
from omnimamba_cli.engine.bench_machine import Machine
from omnimamba_cli.engine.bench_rows import Row
from omnimamba_cli.engine.bench_stage2 import PAPER_ROWS, Stage2, Stage2Bench, batch_of, held_bytes, peak_of, step_flops
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.train.language import Objective
from omnimamba_cli.train.loop import Loop
from omnimamba_cli.train.stages import recipe
from tests.cli.conftest import Run, run  # noqa: F401  # a fixture

CPU = torch.device("cpu")


def test_the_step_of_a_tiny_model_is_measured_whole(run: Run, tiny_model: Path) -> None:  # noqa: F811
    options = ("--device", "cpu", "--rows-mmu", "1", "--rows-t2i", "2", "--seconds", "1", "--json")
    done = run("bench", "-m", str(tiny_model), "--task", "stage2", *options)
    assert done.code == 0, done.err
    row = json.loads(done.out)
    # two drawings of 16 + 64 tokens; a picture of 16 patches and 4 marks with 64 tokens of text
    assert row["tokens_per_s"] * row["seconds_total"] == pytest.approx(2 * 80 + 84, rel=1e-4)
    assert 0 < row["mfu"] < 1
    assert row["peak_rss_bytes"] > 0
    assert not {"row_step", "int8"} & set(row["kernels"])  # of decoding
    assert (row["batch"], row["error"], row["dtype"]) == (3, None, "float32")
    assert "2 drawings of 80 tokens and 1 picture with 64 tokens of text" in row["what"]


def test_a_task_may_be_left_out_and_activations_computed_again(tiny_model: Path) -> None:
    config = bench.BenchConfig(
        task="stage2",
        model=str(tiny_model),
        device="cpu",
        rows_mmu=0,
        rows_t2i=1,
        checkpoint_activations=True,
        budget_s=1,
    )
    (row,) = [event for event in bench.run(config) if isinstance(event, Row)]
    assert row.tokens == 80
    assert "activations computed again" in row.what


@pytest.mark.parametrize(
    ("recompute", "rows", "following"),
    [
        (False, (3, 8), "--checkpoint-activations --rows-mmu 3 --rows-t2i 8 --device cpu"),
        (True, (3, 8), "--checkpoint-activations --rows-mmu 2 --rows-t2i 4 --device cpu"),
        (True, (1, 0), None),
    ],
)
def test_out_of_memory_is_a_row_with_the_command_to_try_next(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    recompute: bool,
    rows: tuple[int, int],
    following: str | None,
) -> None:
    def exhausted(loop: Loop, micros: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.48 GiB. GPU 0")

    monkeypatch.setattr(Loop, "take_step", exhausted)
    config = bench.BenchConfig(
        task="stage2",
        model=str(tiny_model),
        device="cpu",
        rows_mmu=rows[0],
        rows_t2i=rows[1],
        checkpoint_activations=recompute,
    )
    (row,) = [event for event in bench.run(config) if isinstance(event, Row)]
    assert row.method == "failed"
    assert row.error == "out of memory: CUDA out of memory. Tried to allocate 1.48 GiB. GPU 0"
    command = f"omnimamba bench --task stage2 -m {tiny_model}"
    assert row.notes == ((f"next: {command} {following}",) if following else ())


def test_the_operations_are_those_of_the_matrix_products(tiny_config: ModelConfig) -> None:
    """torch's own counter, less what is no product with a weight: the scan, and the folding of LoRA."""
    model = OmniMamba(tiny_config).eval()
    objective = Objective(model, None, {"mmu": 1.0, "t2i": 1.0})
    batch = batch_of(tiny_config, {"mmu": 0, "t2i": 3}, CPU)
    counter = FlopCounterMode(display=False)
    one = torch.ones(())
    with counter:
        objective(batch, {"t2i": one})["loss"].backward()
    products = counter.get_flop_counts()["Global"]
    found = step_flops(objective, batch)
    by_weights = products[torch.ops.aten.mm] + products.get(torch.ops.aten.addmm, 0)
    # the loss needs scores at the codes alone, and the pair is folded into the map: both within a few percent
    assert found == pytest.approx(by_weights, rel=0.1)


def test_the_papers_rows_are_an_eighth_of_its_batch() -> None:
    row = recipe(2, None)
    assert {"mmu": row.batch_mmu // 8, "t2i": row.batch_t2i // 8} == PAPER_ROWS


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H100 80GB HBM3", torch.float32, None),
        ("a processor", torch.bfloat16, None),
    ],
)
def test_the_data_sheet_is_known_for_16_bits(name: str, dtype: torch.dtype, peak: float | None) -> None:
    assert peak_of(Machine(CPU, name, dtype, 1.0, 1.0)) == peak


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "stage2", "--seq-len", "8"), "full length"),
        (("--task", "train", "--rows-mmu", "1"), "not for --task train"),
        (("--task", "stage2", "--rows-mmu", "0", "--rows-t2i", "0"), "nothing to measure"),
    ],
)
def test_options_of_another_task_are_refused(run: Run, arguments: tuple[str, ...], said: str) -> None:  # noqa: F811
    done = run("bench", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_what_a_step_holds_is_weights_gradients_and_moments_and_the_encoders(tiny_model: Path) -> None:
    step = Stage2(Stage2Bench(model=str(tiny_model), device="cpu"), Machine(CPU, "a machine", torch.float32, 1e9, 1e9))
    parameters = list(step.loop.job.module.parameters())
    assert sum((16 if p.requires_grad else 4) * p.numel() for p in parameters) == held_bytes(step.config)
