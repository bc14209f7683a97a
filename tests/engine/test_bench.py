"""The benchmark's arithmetic, its rows, what it does when memory runs out, its verdicts and its plots. No timings."""

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from omnimamba_cli.config import ModelConfig
from omnimamba_cli.engine import bench, bench_machine, bench_plot, runtime
from omnimamba_cli.engine.bench_claims import CLAIMS, paper_seconds, verdicts
from omnimamba_cli.engine.bench_floor import transformer_floor
from omnimamba_cli.engine.bench_machine import Machine, Memory, fill_random, median_and_spread
from omnimamba_cli.engine.bench_measure import Cell, measure
from omnimamba_cli.engine.bench_opponents import OPPONENTS, chosen, matched, opponent
from omnimamba_cli.engine.bench_rows import Row, table
from omnimamba_cli.engine.bench_systems import OmniMambaSystem, load_ours, prefix_of, standing_at
from omnimamba_cli.engine.bench_timing import (
    BLOCKS,
    Sample,
    Timing,
    integrate,
    sample_positions,
    time_steps,
    time_whole,
)
from omnimamba_cli.engine.bench_transformers import TransformerSystem, grown
from omnimamba_cli.errors import UsageError
from omnimamba_cli.presets import PRESETS

CPU = torch.device("cpu")
MACHINE = Machine(CPU, "a machine", torch.float32, 1e10, 1e11, {"torch": "2"})


def row(system: str = "omnimamba-x", *, length: int = 16_000, total_s: float = 10.0, gib: float = 3.0) -> Row:
    memory = Memory(int(gib * 2**30), None, None)
    samples = tuple(Sample(p, Timing((total_s / length,), 0.1), memory) for p in (700, 700 + length))
    return Row(
        task="text",
        system=system,
        opponent=not system.startswith("omnimamba"),
        what="something",
        machine=MACHINE,
        dtype=torch.float32,
        batch=1,
        method="sampled",
        seq_len=length,
        prefix=700,
        step_s=total_s / length,
        total_s=total_s,
        work_s=total_s,
        floor_s=total_s / 2,
        tokens=length,
        steps=samples[-1].timing,
        samples=samples,
        memory=memory,
    )


# arithmetic


def test_a_linear_cost_is_summed_exactly() -> None:
    def cost(position: int) -> float:
        return 3.0 + 0.25 * position

    positions = sample_positions(760, 16_000)
    total = integrate(positions, [cost(p) for p in positions], 760, 16_000)
    assert total == pytest.approx(sum(cost(p) for p in range(760, 16_760)), rel=1e-12)


def test_a_quadratic_cost_is_summed_within_two_percent_and_never_too_low() -> None:
    positions = sample_positions(0, 10_000)
    exact = sum(float(p) ** 2 for p in range(10_000))
    assert exact <= integrate(positions, [float(p) ** 2 for p in positions], 0, 10_000) <= 1.04 * exact


@pytest.mark.parametrize(("start", "length"), [(0, 1), (5, 3), (760, 16_000), (1, 5), (9, 6)])
def test_sampled_positions_start_and_end_where_the_tokens_do(start: int, length: int) -> None:
    positions = sample_positions(start, length)
    assert positions == sorted(set(positions))
    assert (positions[0], positions[-1]) == (start, start + length - 1)


def test_warm_up_is_no_part_of_what_is_measured() -> None:
    done = count()
    timing = time_steps(iter(lambda: next(done), -1), CPU, budget_s=5.0)
    assert len(timing.seconds) == 5
    assert timing.warmup_s > 0


def test_without_time_one_step_is_all() -> None:
    assert len(time_steps(iter(lambda: 1, 0), CPU, budget_s=0.0).seconds) == 1


def test_the_spread_is_the_distance_of_the_quartiles() -> None:
    assert median_and_spread((1.0, 2.0, 3.0, 4.0, 100.0)) == (3.0, 2.0)
    assert median_and_spread((7.0,)) == (7.0, 0.0)


def test_the_ceiling_is_the_best_of_many_products(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([0.04] * 9 + [0.01] + [0.04] * 99)
    monkeypatch.setattr(bench_machine, "seconds_of", lambda work, device: next(took))
    assert bench_machine._product_rate(CPU, torch.float32) == 2 * 1024**3 / 0.01


def test_free_memory_is_what_the_kernel_and_the_container_s_limit_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(bench_machine, "GROUP", tmp_path)
    # shared memory is in Cached, and not to be had
    (tmp_path / "meminfo").write_text("MemFree: 1000 kB\nMemAvailable:    5000 kB\nCached: 9000 kB\n")
    assert bench_machine.free_bytes(CPU) == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert bench_machine.free_bytes(CPU) == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1500000\ninactive_file 400000\n")
    assert bench_machine.free_bytes(CPU) == 3_000_000 - 2_000_000 + 400_000
    for file in tmp_path.iterdir():
        file.unlink()
    assert bench_machine.free_bytes(CPU) is None or bench_machine.free_bytes(CPU) > 0


def test_random_weights_fill_everything() -> None:
    tensor = torch.full(((1 << 20) + 7 + 1000,), torch.nan)
    fill_random(tensor, 0.5)
    assert torch.isfinite(tensor).all()
    assert 0.4 < float(tensor.abs().max()) <= 0.5


# systems


@pytest.fixture
def tiny(tiny_model: Path) -> OmniMambaSystem:
    return OmniMambaSystem(load_ours(str(tiny_model), "cpu", "fp32", "text", 400), 2)


def test_positions_past_the_table_are_extended_and_said_to_be(tiny: OmniMambaSystem, tiny_config: ModelConfig) -> None:
    assert len(tiny.model.mmu_positions) == 400
    assert f"positions extended from {tiny_config.mmu_positions} to 400" in tiny.what("text")
    steps = tiny.steps(300)
    for _ in range(5):
        next(steps)


def test_a_standing_model_starts_where_it_is_told_and_forgets_it(tiny: OmniMambaSystem) -> None:
    with standing_at(tiny.model, 77):
        assert tiny.model.new_state(1).position == 77
    assert tiny.model.new_state(1).position == 0


def test_our_own_generation_never_ends_early(tiny: OmniMambaSystem) -> None:
    assert len(list(tiny.generate(10, 60))) == 60


def test_a_step_reads_layers_and_head_and_moves_the_state_twice(tiny: OmniMambaSystem) -> None:
    model = tiny.model
    weights, state = tiny.step_bytes("text", 100)
    maps = [p.nbytes for p in model.layers.parameters() if p.ndim > 1]
    assert weights == sum(maps) + model.text_embedding.weight.nbytes
    assert state == 2 * model.new_state(2).nbytes


def test_narrow_weights_are_counted_in_their_one_byte(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "check_quantization", lambda *_: None)
    for task in ("text", "image"):
        wide, narrow = (
            OmniMambaSystem(load_ours(str(tiny_model), "cpu", "fp32", task, 400, kind), 1) for kind in (None, "int8")
        )
        assert narrow.name == f"{wide.name} int8"
        # all but the convolutions and the image MLP shrink to a quarter
        kept_bytes = sum(layer.mixer.conv1d.weight.nbytes for layer in narrow.model.layers)
        if task == "image":
            kept_bytes += sum(p.nbytes for p in narrow.model.image_mlp.parameters() if p.ndim > 1)
        assert narrow.step_bytes(task, 0)[0] - kept_bytes == (wide.step_bytes(task, 0)[0] - kept_bytes) // 4


def test_presets_get_random_weights_that_run() -> None:
    loaded = load_ours("nano", "cpu", "auto", "text", 10)
    assert "random weights" in loaded.notes
    logits = loaded.model.logits(loaded.model(torch.ones(1, 2, 384), "mmu"), "mmu")
    assert torch.isfinite(logits).all()
    assert float(logits.detach().std()) > 0


@pytest.mark.parametrize("cache", ["none", "growing", "fixed"])
def test_every_way_to_run_a_transformer_generates_the_same_tokens(tiny_config: ModelConfig, cache: str) -> None:
    def tokens(how: str) -> list[int]:
        torch.manual_seed(0)
        who = replace(opponent("matched", tiny_config), cache=how)  # type: ignore[arg-type]  # one of three words
        system = TransformerSystem("x", who, "text", CPU, torch.float32, 1)
        found = []
        for item in system.generate(6, 8):
            assert isinstance(item, Tensor)
            found.append(int(item[0, -1]))
        return found

    assert tokens(cache) == tokens("none")


@pytest.mark.parametrize("name", ["matched", "matched-uncached"])
def test_steps_of_a_transformer_stay_at_their_position(tiny_config: ModelConfig, name: str) -> None:
    system = TransformerSystem(name, opponent(name, tiny_config), "text", CPU, torch.float32, 2)
    steps = system.steps(9)
    assert len([next(steps) for _ in range(4)]) == 4


def test_show_o_s_mask_grows_as_if_made_at_once() -> None:
    low = torch.finfo(torch.float32).min
    made = [torch.full((n, n), low).triu(1) for n in (4, 5)]
    assert torch.equal(grown(made[0]), made[1])


def test_a_matched_transformer_has_about_as_many_weights() -> None:
    for config in PRESETS.values():
        c = config.backbone
        mixers = c.n_layer * c.d_model * (c.d_in_proj + c.d_inner)
        assert matched(config).layer_weights == pytest.approx(mixers, rel=0.1)


@pytest.mark.parametrize(("name", "billions"), [("show-o", 1.3), ("janusflow", 1.4), ("janus-pro", 1.4), ("emu3", 7.7)])
def test_published_opponents_have_the_published_sizes(name: str, billions: float) -> None:
    assert OPPONENTS[name].config.step_weights / 1e9 == pytest.approx(billions, abs=0.05)


def test_baselines_are_chosen_by_name_by_set_and_by_size(tiny_config: ModelConfig) -> None:
    assert chosen(["emu3", "matched", "emu3"], tiny_config) == ["emu3", "matched"]
    assert chosen(["none"], tiny_config) == []
    assert chosen(["auto"], tiny_config) == ["matched", "matched-uncached"]
    assert chosen(["auto"], PRESETS["1.3b"])[:2] == ["show-o", "show-o-cached"]
    # in training no cache takes part: one of each size
    assert chosen(["auto"], tiny_config, "train") == ["matched"]
    assert chosen(["auto"], PRESETS["1.3b"], "train") == ["show-o", "janusflow"]
    assert set(OPPONENTS) <= set(chosen(["all"], tiny_config))
    with pytest.raises(UsageError, match="no baseline 'janusflo'") as error:
        chosen(["janusflo"], tiny_config)
    assert "janusflow" in str(error.value.hint)


# rows


def runner(config: bench.BenchConfig, model: ModelConfig, lengths: list[int], seconds: float = 1.0) -> bench.Runner:
    return bench.Runner(config, MACHINE, model, lengths, bench.Clock(seconds, len(lengths)))


class Exhausted(TransformerSystem):
    """Runs out of memory past 50 tokens."""

    def steps(self, position: int) -> Iterator[object]:
        if position > 50:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        return super().steps(position)


def test_out_of_memory_is_a_row_and_the_other_lengths_go_on(tiny_config: ModelConfig) -> None:
    who = opponent("matched", tiny_config)
    # time enough to come past 50 on a busy machine
    go = runner(bench.BenchConfig(), tiny_config, [3, 200], seconds=60.0)
    build: Callable[[], TransformerSystem] = lambda: Exhausted("x", who, "text", CPU, torch.float32, 1)  # noqa: E731
    first, second = go.rows("x", who, build, 0.0)
    assert first.error is None
    assert second.method == "failed"
    assert second.error == "out of memory: Tried to allocate 20.00 GiB"
    assert second.to_dict()["ms_per_token"] is None
    assert "out of memory" in table([first, second])[1][1][-1]


def test_a_model_that_does_not_fit_is_a_row_for_every_length(tiny_config: ModelConfig) -> None:
    def build() -> TransformerSystem:
        raise MemoryError

    go = runner(bench.BenchConfig(), tiny_config, [3, 9])
    rows = list(go.rows("emu3", OPPONENTS["emu3"], build, 0.0))
    assert [r.seq_len for r in rows] == [3, 9]
    assert all(r.error is not None and r.error.startswith("out of memory") for r in rows)


@pytest.mark.parametrize(("budget_s", "blocks"), [(1e9, BLOCKS), (0.0, 0)])
def test_work_is_timed_several_times_at_once_after_a_warm_up(budget_s: float, blocks: int) -> None:
    done: list[int] = []
    timing = time_whole(lambda: done.append(1), CPU, budget_s, together=3)
    assert len(done) == 1 + 3 * blocks
    assert len(timing.seconds) == max(1, blocks)


@pytest.mark.parametrize("task", ["text", "prefill", "train", "stage2"])
def test_our_own_model_that_does_not_fit_is_a_row_too(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, task: bench.TaskName
) -> None:
    def exhausted(*arguments: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    monkeypatch.setattr(bench, "load_ours", exhausted)
    monkeypatch.setattr(bench, "Stage2", exhausted)
    lengths = [] if task == "stage2" else [4]
    config = bench.BenchConfig(task=task, seq_lens=lengths, model=str(tiny_model), device="cpu", budget_s=1.0)
    rows = [event for event in bench.run(config) if isinstance(event, Row)]
    assert (rows[0].system, rows[0].error) == ("tiny", "out of memory: Tried to allocate 20.00 GiB")
    assert task == "stage2" or any(r.error is None for r in rows[1:])  # the others go on


@pytest.mark.parametrize("task", ["text", "train", "stage2"])
def test_a_preset_too_large_for_a_cpu_is_a_row_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch, task: bench.TaskName
) -> None:
    monkeypatch.setattr(bench, "free_bytes", lambda device: 2_000_000)
    monkeypatch.setattr(bench, "load_ours", None)
    monkeypatch.setattr(bench, "Stage2", None)
    config = bench.BenchConfig(task=task, model="nano", device="cpu", budget_s=1.0)
    rows = [event for event in bench.run(config) if isinstance(event, Row) and event.method != "computed"]
    assert all(r.error is not None and r.error.startswith("out of memory: needs 0.") for r in rows)


def test_a_batch_whose_states_do_not_fit_a_cpu_is_a_row(tiny: OmniMambaSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.batch = 1_000_000
    monkeypatch.setattr(tiny, "generate", None)  # nothing is allocated
    (only,) = runner(bench.BenchConfig(), tiny.config, [4]).rows("x", None, lambda: tiny, 0.0)
    assert only.error is not None
    assert only.error.startswith("out of memory: needs ")


@pytest.mark.parametrize(("dtype", "said"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_training_computes_in_the_number_format_that_its_row_says(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, said: torch.dtype
) -> None:
    used = []
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, **how: used.append(how) or autocast(kind, **how))
    config = bench.BenchConfig(
        task="train", seq_lens=[6], model=str(tiny_model), device="cpu", dtype=dtype, baselines=["none"], budget_s=0.1
    )
    (row,) = [event for event in bench.run(config) if isinstance(event, Row)]
    assert row.dtype == said
    assert used[0]["enabled"] == (said != torch.float32)
    assert said == torch.float32 or used[0]["dtype"] == said


def test_a_row_names_no_kernels_that_did_not_run(tiny: OmniMambaSystem, tiny_model: Path) -> None:
    assert tiny.kernels()["row_step"] == "cpu"
    assert "int8" not in tiny.kernels()
    training = OmniMambaSystem(load_ours(str(tiny_model), "cpu", "fp32", "train", 400), 1)
    assert "row_step" not in training.kernels()


def test_another_error_is_no_row() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        bench.memory_failure(RuntimeError("a bug"))


def test_steps_are_timed_where_there_is_no_time_to_read_the_prefix(tiny_config: ModelConfig) -> None:
    slow = replace(MACHINE, flops_per_s=1.0)
    rows = {}
    for name in ("matched", "matched-uncached"):
        system = TransformerSystem(name, opponent(name, tiny_config), "text", CPU, torch.float32, 1)
        cell = Cell(task="text", machine=slow, seq_len=5, prefix=9, budget_s=1.0, full=False, build_s=0.0)
        rows[name] = measure(system, cell)
    cached, uncached = rows["matched"], rows["matched-uncached"]
    assert cached.ttft is None
    assert cached.step_s is not None
    assert "not in the total" in cached.notes[0]
    assert uncached.error is not None
    assert uncached.error.startswith("no time")


def test_what_cannot_be_reached_in_time_is_extrapolated_and_says_so(tiny_config: ModelConfig) -> None:
    who = opponent("matched-uncached", tiny_config)
    go = runner(replace(bench.BenchConfig(), budget_s=0.5), tiny_config, [1_000_000])
    (only,) = go.rows("x", who, lambda: TransformerSystem("x", who, "text", CPU, torch.float32, 1), 0.0)
    assert only.method == "extrapolated"
    assert "timed up to" in only.notes[0]
    assert len(only.samples) < 5


@pytest.mark.parametrize("task", ["text", "prefill", "train", "image"])
def test_every_task_runs_to_its_end_on_a_tiny_model(tiny_model: Path, task: bench.TaskName) -> None:
    lengths = [] if task == "image" else [6]
    config = bench.BenchConfig(
        task=task, seq_lens=lengths, model=str(tiny_model), device="cpu", baselines=["matched"], budget_s=1.0, batch=2
    )
    begun, *events = bench.run(config)
    rows = [event for event in events if isinstance(event, Row)]
    assert isinstance(begun, bench.Begun)
    expected = [True, True] if task == "text" else [True]
    assert [r.opponent for r in rows] == [False, *expected]
    assert begun.cells == 2
    for r in rows:
        assert r.error is None
        assert r.total_s is not None
        assert r.total_s > 0
        assert r.floor_fraction is not None
        assert r.tokens_per_s is not None
        assert len({*r.to_dict()} ^ {*rows[0].to_dict()}) == 0


def test_generating_every_token_times_every_token(tiny_model: Path) -> None:
    config = bench.BenchConfig(
        seq_lens=[40], model=str(tiny_model), device="cpu", baselines=["matched"], full=True, budget_s=2.0
    )
    rows = [event for event in bench.run(config) if isinstance(event, Row)]
    assert [r.method for r in rows] == ["full", "full", "computed"]
    assert all(len(r.samples) == 39 for r in rows[:2])


@pytest.mark.parametrize("name", ["matched", "matched-uncached"])
def test_generating_every_token_ends_with_its_time_and_says_so(tiny_config: ModelConfig, name: str) -> None:
    system = TransformerSystem(name, opponent(name, tiny_config), "text", CPU, torch.float32, 1)
    cell = Cell(task="text", machine=MACHINE, seq_len=100_000, prefix=9, budget_s=0.5, full=True, build_s=0.0)
    only = measure(system, cell)
    assert only.method == "extrapolated"
    assert "tokens were generated in the time there was" in only.notes[0]
    assert only.tokens == 100_000
    assert only.total_s is not None
    # the later steps take longer
    assert only.total_s > 100_000 * only.samples[-1].timing.median


def test_every_token_is_not_begun_with_a_prefix_that_takes_too_long(tiny_config: ModelConfig) -> None:
    system = TransformerSystem("x", opponent("matched", tiny_config), "text", CPU, torch.float32, 1)
    slow = replace(MACHINE, flops_per_s=1.0)
    only = measure(system, Cell(task="text", machine=slow, seq_len=5, prefix=9, budget_s=1.0, full=True, build_s=0.0))
    assert only.error is not None
    assert only.error.startswith("no time")


def test_the_line_no_transformer_passes_counts_weights_and_cache() -> None:
    model = PRESETS["1.3b"]
    floor = transformer_floor(MACHINE, model, torch.bfloat16, 1, 16_000)
    size = OPPONENTS["janusflow"].config
    middle = prefix_of(model) + (16_000 - 1) / 2
    assert prefix_of(model) == 760
    assert floor.step_s == pytest.approx(2 * (size.step_weights + size.kv_values * middle) / 1e10)
    (line,) = bench_plot.time_curves([floor])  # of one length, too
    assert line.dashed
    assert len(line.points) == 5
    assert bench_plot.memory_curves([floor]) == []


def test_training_measures_all_weights(tiny_model: Path) -> None:
    system = OmniMambaSystem(load_ours(str(tiny_model), "cpu", "fp32", "train", 400), 2)
    module, loss = system.train_loss(5)
    assert isinstance(module, nn.Module)
    loss().backward()
    assert all(p.grad is not None for layer in system.model.layers for p in layer.mixer.out_proj.parameters())


# the paper


def test_verdicts_say_under_which_opponent_a_claim_holds() -> None:
    rows = [row(total_s=10.0, gib=3.0), row("show-o", total_s=2000.0, gib=9.0), row("janusflow-graph", total_s=25.0)]
    (speed,) = verdicts(rows)
    assert speed.claim == CLAIMS[0]
    assert (speed.holds, speed.fails) == (["show-o"], ["janusflow-graph"])
    assert "holds against show-o (200 times); does not hold against janusflow-graph (2.5 times)" in str(speed)


def test_large_ratios_have_no_exponents() -> None:
    (speed,) = verdicts([row(total_s=10.0), row("show-o", total_s=19_123.0)])
    assert "show-o (1,912 times)" in str(speed)


def test_memory_is_compared_where_it_was_measured() -> None:
    rows = [row(length=100_000, gib=3.0), row("janusflow", length=100_000, total_s=30.0, gib=20.0)]
    found = {v.claim.measure: v for v in verdicts(rows)}
    assert found["memory"].measured["janusflow"] == pytest.approx(0.85)
    unreached = [rows[0], replace(rows[1], method="extrapolated")]
    assert [v.claim.measure for v in verdicts(unreached)] == ["speed"]


def test_a_small_model_s_process_says_nothing_of_memory() -> None:
    rows = [row(length=23_000, gib=3.0), row("matched", length=23_000, gib=9.0)]
    assert [v.claim.measure for v in verdicts(rows)] == ["memory"]
    assert verdicts(rows, small=True) == []


def test_no_verdict_without_both_sides_or_at_another_length() -> None:
    assert verdicts([row("show-o"), row("janusflow")]) == []
    assert verdicts([row(length=2000), row("show-o", length=2000)]) == []


def test_the_paper_s_seconds_stand_beside_their_length_alone() -> None:
    assert paper_seconds("show-o", 16_384) == 7_940.0
    assert paper_seconds("show-o", 20_000) is None
    assert paper_seconds("janusflow-graph", 16_000) is None


# plots

ROWS = [row(), row("janus<flow>", total_s=40.0, gib=8.0), replace(row("transformer-floor"), method="computed")]


def test_a_png_opens_and_shows_every_system_s_colour() -> None:
    image = Image.open(io.BytesIO(bench_plot.draw(ROWS, ".png")))
    assert image.size == (2 * bench_plot.WIDTH, 2 * bench_plot.HEIGHT)
    colors = {color for _, color in image.convert("RGB").getcolors(1 << 20) or []}
    for name in bench_plot.COLORS[:3]:
        assert tuple(bytes.fromhex(name[1:])) in colors


def test_an_svg_parses_and_names_every_system() -> None:
    root = ET.fromstring(bench_plot.draw(ROWS, ".svg").decode())
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"omnimamba-x", "janus<flow>", "transformer-floor"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) > 3


def test_every_shape_is_on_the_page() -> None:
    for shape in bench_plot.shapes(ROWS):
        points = shape.points if isinstance(shape, bench_plot.Stroke) else ((shape.x, shape.y),)
        assert all(0 <= x <= bench_plot.WIDTH and 0 <= y <= bench_plot.HEIGHT for x, y in points)


def test_a_plot_of_failures_alone_says_that_nothing_was_measured() -> None:
    failed = replace(row(), method="failed", samples=(), step_s=None, memory=None, error="out of memory")
    assert "nothing measured" in bench_plot.draw([failed], ".svg").decode()
