"""`omnimamba bench`: how fast this machine runs the model, beside Transformers and what the hardware allows."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from omnimamba_cli.cli import targets
from omnimamba_cli.cli.models import describe_choices
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import Device, Dtype, Force, Offline, Quantize, ReportOptions
from omnimamba_cli.cli.output import Output
from omnimamba_cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omnimamba_cli.engine.bench import BenchConfig
    from omnimamba_cli.engine.bench_claims import Verdict
    from omnimamba_cli.engine.bench_rows import Row

TaskChoice = Literal["text", "image", "prefill", "train", "stage2"]
LONGEST = 10_000_000  # tokens; beyond, even the list of positions is large


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """What is measured, and for how long."""

    seq_len: Annotated[
        str | None,
        typer.Option(
            "--seq-len",
            metavar="N[,N...]",
            help="Tokens to generate, read or train on. Without it: 1000,16000 (text).",
            show_default=False,
        ),
    ] = None
    task: Annotated[
        TaskChoice, typer.Option("--task", help="What to measure; stage2: a step of the paper's training.")
    ] = "text"
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Rows at once.")] = 1
    rows_mmu: Annotated[
        int | None, typer.Option("--rows-mmu", min=0, help="stage2: rows with a picture; without it 3, on a CPU 1.")
    ] = None
    rows_t2i: Annotated[
        int | None, typer.Option("--rows-t2i", min=0, help="stage2: drawings; without it 48, on a CPU 2.")
    ] = None
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="stage2: compute layers again for the gradient.")
    ] = False
    full: Annotated[bool, typer.Option("--full", help="Generate and time every token, as far as --seconds go.")] = False
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="X",
            min=1,
            help="Time for everything; what does not fit is sampled less. Without it: 100 on a CPU, 600 on a GPU.",
            show_default=False,
        ),
    ] = None

    def lengths(self) -> list[int]:
        """--seq-len as numbers, in order. Raises UsageError for anything else."""
        if self.seq_len is None:
            return []
        words = [word.strip() for word in self.seq_len.split(",")]
        if not all(word.isascii() and word.isdigit() and 2 <= int(word) <= LONGEST for word in words):
            raise UsageError(
                f"--seq-len is {self.seq_len!r}; it must be numbers from 2 to {LONGEST:,}, joined by commas",
                hint="--seq-len 1000,16000",
            )
        return sorted({int(word) for word in words})

    def check(self, baseline: str, quantize: str | None) -> None:
        """Raises UsageError for options that are not for the task."""
        task, lengths = self.task, self.lengths()
        if task == "image" and lengths:
            raise UsageError(
                "--seq-len says how much text, and a picture has a fixed number of codes", hint="leave it out"
            )
        if quantize and task in ("train", "stage2"):
            raise UsageError(
                f"--quantize {quantize} is for decoding; training needs the whole weights", hint="leave it out"
            )
        if self.full and task != "text":
            raise UsageError(f"--full is for text; --task {task} is always measured whole", hint="leave --full out")
        if task == "stage2":
            self._check_stage2(lengths, baseline)
        elif self.rows_mmu is not None or self.rows_t2i is not None or self.checkpoint_activations:
            raise UsageError(
                f"--rows-mmu, --rows-t2i and --checkpoint-activations are not for --task {task}", hint="--task stage2"
            )

    def _check_stage2(self, lengths: list[int], baseline: str) -> None:
        if lengths or self.batch != 1:
            raise UsageError("stage2 has rows of both tasks at their full length", hint="--rows-mmu N --rows-t2i N")
        if self.rows_mmu == 0 and self.rows_t2i == 0:
            raise UsageError("--rows-mmu 0 and --rows-t2i 0 leave nothing to measure", hint="leave one out")
        if baseline not in ("auto", "none"):
            raise UsageError("stage2 measures the training loop alone, beside no baseline", hint="leave --baseline out")


@takes_groups
def command(
    ctx: typer.Context,
    *,
    work: WorkOptions,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            envvar="OMNIMAMBA_MODEL",
            metavar="PRESET|NAME|DIR",
            help="A preset (1.3b, 370m, nano) with random weights, or a model. Without it: 1.3b on a GPU, else nano.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(
            "--baseline",
            metavar="NAME[,NAME...]",
            help="show-o, show-o-cached, janusflow, janusflow-graph, janus-pro, emu3, matched, matched-uncached; "
            "all, none, or auto: those fair for the model's size.",
        ),
    ] = "auto",
    offline: Offline = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE.png|svg", help="Draw time and memory over length.", show_default=False),
    ] = None,
    force: Force = False,
    report: ReportOptions,
) -> None:
    """Measure speed and memory, beside Transformers and what the hardware allows.

    \b
    omnimamba bench
    omnimamba bench --seq-len 1000,16000,100000 --plot speed.svg
    omnimamba bench --task image --batch 16 --baseline show-o,janusflow-graph
    omnimamba bench -m nano --device cpu --seq-len 16000 --json > rows.jsonl

    A row says what exactly was measured, on what and how. By default steps are timed at sampled positions and summed
    over the length; --full generates every token. "of floor" is the share of what the bytes and operations of the
    work allow at the rates measured at the start. BENCHMARKS.md explains every number.
    """
    out = report.configure(ctx, offline=offline)
    work.check(baseline, quantize)
    if plot is not None:
        check_plot(plot, work.task, force)
    from omnimamba_cli.engine.bench import BenchConfig

    config = BenchConfig(
        task=work.task,
        seq_lens=work.lengths(),
        batch=work.batch,
        model=model,
        baselines=[word.strip() for word in baseline.split(",") if word.strip()],
        device=device,
        dtype=dtype,
        quantize=quantize,
        full=work.full,
        budget_s=work.seconds,
        rows_mmu=work.rows_mmu,
        rows_t2i=work.rows_t2i,
        checkpoint_activations=work.checkpoint_activations,
    )
    rows = measure(out, config)
    check_measured(rows)
    if plot is not None:
        from omnimamba_cli.engine import bench_plot

        targets.write_whole(Path(plot), bench_plot.draw(rows, Path(plot).suffix.lower()), force)
        out.note(f"plot: {plot}")


def check_plot(plot: str, task: TaskChoice, force: bool) -> None:
    """Raises before any work for a plot that cannot be drawn or written."""
    path = Path(plot)
    if path.suffix.lower() not in (".png", ".svg"):
        # without a name of its own: nothing, a folder, "-", ".svg"
        named = path.name not in ("", "-") and not path.name.startswith(".")
        better = path / "speed.svg" if plot and path.is_dir() else path.with_suffix(".svg") if named else "speed.svg"
        raise UsageError(f"--plot {plot or repr(plot)}: plots are drawn as PNG or SVG", hint=f"--plot {better}")
    if task in ("image", "stage2"):
        what = "pictures have" if task == "image" else "stage2 has"
        raise UsageError(f"--plot draws over length, and {what} one", hint="leave --plot out")
    targets.check(Path(plot), force)


def measure(out: Output, config: "BenchConfig") -> "list[Row]":
    """Runs the benchmark: prints rows as JSON lines when they come, or a table at the end."""
    from omnimamba_cli.engine import bench
    from omnimamba_cli.engine.bench_claims import Verdict
    from omnimamba_cli.engine.bench_rows import Row, table

    rows: list[Row] = []
    verdicts: list[Verdict] | None = None
    events = bench.run(config)
    begun = next(events)
    assert isinstance(begun, bench.Begun)  # it comes first
    machine = begun.machine
    out.note(
        f"{machine.name}, {begun.model}: reads {machine.read_bytes_per_s / 1e9:,.0f} GB/s, "
        f"multiplies at {machine.flops_per_s / 1e12:,.2f} TFLOP/s"
    )
    if out.verbose:
        device, dtype = (machine.device, begun.device_reason), (machine.dtype, begun.dtype_reason)
        describe_choices(out, device, dtype, config.quantize)
    try:
        with out.progress("measuring", total=begun.cells) as bar:
            for event in events:
                match event:
                    case bench.Note():
                        out.note(event.text)
                    case Row():
                        bar.advance(1, event.system)
                        rows.append(event)
                        if out.json:
                            out.record(event.to_dict())
                    case Verdict():
                        verdicts = [*(verdicts or []), event]
                        if out.json:
                            out.record(event.to_dict())
        verdicts = verdicts or []
    finally:  # stopped after minutes, too: what was measured until then
        if rows and not out.json:
            out.table(*table(rows))
            for line in explained(rows, verdicts):
                out.line(line)
    return rows


def check_measured(rows: "Sequence[Row]") -> None:
    """Raises DeviceError where not one row could be measured; a few that could not are part of the answer."""
    failed = [row for row in rows if row.error is not None]
    if failed and not any(row.error is None and row.method != "computed" for row in rows):
        first = failed[0]
        raise DeviceError(
            f"nothing could be measured: {first.system}: {first.error}", hint="a smaller --batch, --seq-len or --model"
        )


def explained(rows: "Sequence[Row]", verdicts: "Sequence[Verdict] | None") -> list[str]:
    """What stands below the table: on what it was measured, what each system is, what was noted, the paper's claims.

    Without verdicts, which come last, the measuring was stopped.
    """
    first, machine = rows[0], rows[0].machine
    said = f"{str(first.dtype).removeprefix('torch.')}, batch {first.batch}, on {machine.name}"
    rates = f"reads {machine.read_bytes_per_s / 1e9:,.0f} GB/s, multiplies at {machine.flops_per_s / 1e12:,.2f} TFLOP/s"
    lines = ["", f"{said} ({rates})", ", ".join(f"{name} {number}" for name, number in machine.versions.items()), ""]
    for name in dict.fromkeys(row.system for row in rows):
        mine = [row for row in rows if row.system == name]
        lines.append(f"{name}: {mine[0].what}")
        lines += [f"  kernels: {kernels_line(mine[0].kernels)}"] if mine[0].kernels else []
        notes = dict.fromkeys(n for row in mine for n in (*row.notes, *([row.error] if row.error else [])))
        lines += [f"  {note}" for note in notes]
    return [*lines, *claims(rows, verdicts)]


def kernels_line(kernels: "Mapping[str, str]") -> str:
    """Which kernels ran, the most usual ones not one by one."""
    usual, times = Counter(kernels.values()).most_common(1)[0]
    shown = [f"{op} {backend}" for op, backend in kernels.items() if backend != usual or times < 3]
    return ", ".join([*shown, *([f"{'all else' if shown else 'all'} {usual}"] if times >= 3 else [])])


def claims(rows: "Sequence[Row]", verdicts: "Sequence[Verdict] | None") -> list[str]:
    """The paper's claims beside what was measured, or why there is nothing to set beside them."""
    if verdicts:
        system = verdicts[0].system
        beside = "what was measured here"
        if verdicts[0].small:
            beside = f"what {system}, a much smaller model, does here beside Transformers of its own size"
        head = f"the paper's claims (arXiv:2503.08686, OmniMamba-1.3B on an RTX 4090), and {beside}:"
        return ["", head, *(f"  {verdict}" for verdict in verdicts)]
    if verdicts is not None and any(row.opponent for row in rows) and rows[0].task in ("text", "image"):
        where = "for one row of 16,000, 23,000 and 100,000 tokens, and for 16 pictures at once"
        return ["", f"the paper's claims are {where}; none of these was measured here"]
    return []
