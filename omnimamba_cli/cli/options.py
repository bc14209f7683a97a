"""Options of more than one command, each written once; those that belong together are groups (see option_groups).

@takes_groups
def command(ctx: typer.Context, *, force: Force = False, where: ModelOptions, report: ReportOptions) -> None:
    out = report.configure(ctx, offline=where.offline)
"""

import os
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from omnimamba_cli.cli.output import ColorChoice, Output
from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.errors import UsageError

DtypeChoice = Literal["auto", "bf16", "fp16", "fp32"]
QuantizeChoice = Literal["int8", "fp8"]
FormatChoice = Literal["png", "jpeg", "webp"]

# which model, and where it runs
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="OMNIMAMBA_MODEL",
        metavar="NAME|DIR|ORG/REPO",
        help="Installed model, model directory or Hub repository (org/repo@revision). "
        "Without it: omnimamba-1.3b where it is installed, else nano.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", envvar="OMNIMAMBA_DEVICE", metavar="auto|cpu|cuda[:N]|mps", help="Where the model runs."),
]
Dtype = Annotated[
    DtypeChoice,
    typer.Option("--dtype", envvar="OMNIMAMBA_DTYPE", help="Number format to compute in."),
]
Quantize = Annotated[
    QuantizeChoice | None,
    typer.Option(
        "--quantize",
        help="Weights of one byte while writing tokens: less memory, faster; fp8 is for recent NVIDIA GPUs.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        envvar="OMNIMAMBA_SEED",
        metavar="N",
        min=0,
        max=2**53 - 1,  # what every JSON reader keeps exactly
        help="Makes a run repeatable. Without it one is drawn and reported.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="How many at once; changes memory and speed, results only by rounding in 16 bits.",
    ),
]

Offline = Annotated[bool, typer.Option("--offline", help="Never use the network, not even for a Hub repository.")]

# how tokens are drawn
Temperature = Annotated[float | None, typer.Option("--temperature", metavar="X", help="0 takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="N", help="Draw from the N likeliest; 0 is off.")]
TopP = Annotated[float | None, typer.Option("--top-p", metavar="X", help="Draw from this share of probability.")]
MinP = Annotated[float | None, typer.Option("--min-p", metavar="X", help="Drop tokens below X times the likeliest.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", metavar="X", help="Above 1 avoids repeats.")
]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", metavar="N", help="Longest answer, in tokens.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", metavar="X", help="How closely to follow the prompt; 1 is off.")
]
Candidates = Annotated[
    int | None,
    typer.Option("--candidates", metavar="N", help="Draw N, keep the one the model itself reads best; 1 is off."),
]

# files
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
FromFile = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="FILE", help="Read more inputs from FILE, one a line, names or JSON objects; - is stdin."
    ),
]
NulSeparated = Annotated[bool, typer.Option("-0", help="Inputs in --from end with NUL, not with a line end.")]
SkipExisting = Annotated[bool, typer.Option("--skip-existing", help="Leave out what is written already.")]
Append = Annotated[
    str | None,
    typer.Option(
        "--append",
        metavar="FILE.jsonl",
        help="Write JSON lines to the end of FILE, and leave out what it holds: the same command goes on.",
    ),
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first input that fails.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be read and written.")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same bits again on the same machine; slower on a GPU.")
]

# on every command
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="Device, kernels, timings; -vv for tracebacks.", show_default=False
    ),
]
Color = Annotated[ColorChoice, typer.Option("--color", help="Colour on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is printed, and how; on every command."""

    json: Json = False
    quiet: Quiet = False
    verbose: Verbose = 0
    color: Color = "auto"

    def configure(self, ctx: typer.Context, *, offline: bool = False) -> Output:
        """The run's Output, configured by these options."""
        out = ctx.find_object(Output) or Output()
        out.configure(quiet=self.quiet, verbose=self.verbose, color=self.color, json=self.json)
        # huggingface_hub reads both when it is imported, which is later
        if offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
        if self.quiet or not out.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        if self.verbose < 2:
            warnings.simplefilter("ignore")  # warnings of libraries; ours go through `out`
        return out


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: Model = None
    offline: Offline = False
    device: Device = "auto"
    dtype: Dtype = "auto"


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(ModelOptions):
    """ModelOptions of a command that generates tokens."""

    quantize: Quantize = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn; without a value the model's own setting holds."""

    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None

    def given(self) -> dict[str, float | int]:
        """The settings that were given, by SamplingConfig field; raises ConfigError for one out of range."""
        chosen = {name: value for name, value in vars(self).items() if value is not None}
        SamplingConfig(**chosen)
        return chosen


@dataclass(frozen=True, kw_only=True)
class TextSampling(SamplingOptions):
    """How the tokens of an answer are drawn."""

    max_new_tokens: MaxNewTokens = None


@dataclass(frozen=True, kw_only=True)
class ImageSampling(SamplingOptions):
    """How the codes of a picture are drawn."""

    guidance: Guidance = None
    candidates: Candidates = None


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """A list of more inputs."""

    from_file: FromFile = None
    nul: NulSeparated = False


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """What becomes of results that exist."""

    append: Append = None
    skip_existing: SkipExisting = False
    force: Force = False

    def check(self, *, json: bool) -> None:
        """Raises UsageError for options that contradict each other wherever there are files to write."""
        if self.force and self.skip_existing:
            raise UsageError("--force and --skip-existing contradict each other")
        if self.append is not None and json:
            raise UsageError("--append writes its JSON lines into the file; --json has nothing to add")
        if self.append == "-":
            raise UsageError(
                "--append goes on with a file, and stdout is none", hint="--json writes these lines to stdout"
            )


@dataclass(frozen=True, kw_only=True)
class PaceOptions:
    """How the inputs are gone through."""

    batch_size: BatchSize = None
    fail_fast: FailFast = False
    deterministic: Deterministic = False
    dry_run: DryRun = False
