"""`omnimamba generate`: words in, picture files out, each written as soon as it is drawn."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from omnimamba_cli import __version__
from omnimamba_cli.cli import grids, inputs, models, showing, targets
from omnimamba_cli.cli.options import (
    BatchSize,
    Candidates,
    Color,
    Device,
    Dtype,
    Force,
    FormatChoice,
    FromFile,
    Guidance,
    Json,
    MinP,
    Model,
    NulSeparated,
    Offline,
    Quantize,
    Quiet,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    Verbose,
    configure,
    given,
)
from omnimamba_cli.cli.output import Output
from omnimamba_cli.cli.targets import Target
from omnimamba_cli.errors import UsageError

if TYPE_CHECKING:
    from omnimamba_cli.engine.events import DrawingEvent, ImageEvent
    from omnimamba_cli.engine.session import Session


def command(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to draw; - reads prompts from stdin, one a line.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File, folder/ or - for stdout; may hold {prompt-slug}, {seed} and {n}. "
            "Without it the file is named after the prompt.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="Pictures of each prompt.")] = 1,
    seed: Seed = None,
    from_file: FromFile = None,
    nul: NulSeparated = False,
    force: Force = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave out pictures that exist.")] = False,
    format_choice: Annotated[
        FormatChoice | None, typer.Option("--format", help="Where the file's name does not tell: png.")
    ] = None,
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Write prompt, seed, model and version into a PNG.")
    ] = True,
    grid: Annotated[
        bool, typer.Option("--grid", help="One file with all pictures side by side, each with its seed.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show the pictures on the terminal, too, while they are drawn.")
    ] = False,
    model: Model = None,
    offline: Offline = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    guidance: Guidance = None,
    candidates: Candidates = None,
    batch_size: BatchSize = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    color: Color = "auto",
) -> None:
    """Draw pictures from words.

    \b
    omnimamba generate "a red fox" -o fox.png --show
    omnimamba generate "a red fox" -n 4 --seed 7 -o fox.png      # fox-1.png to fox-4.png
    omnimamba generate - -o 'out/{prompt-slug}-{seed}.png' < prompts.txt
    omnimamba generate "a red fox" -o - | omnimamba caption - "what is here?"

    Prints the path of each. Picture i uses seed + i, whatever the batch size. Sampling is the model's own
    unless an option says otherwise. An existing file is kept unless --force is given.
    """
    out = configure(ctx, quiet=quiet, verbose=verbose, color=color, json=json, offline=offline)
    settings = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        guidance=guidance,
        candidates=candidates,
    )
    if output == "-" and json:
        raise UsageError("--json and -o - both want stdout", hint="give a file: -o fox.png")
    if force and skip_existing:
        raise UsageError("--force and --skip-existing contradict each other")
    prompts = inputs.prompts(prompt, from_file, nul)
    drawn_seed = models.new_seed() if seed is None else seed
    sheet = grids.target(prompts, drawn_seed, output, format_choice) if grid else None
    planned = [sheet] if sheet else targets.plan(prompts, count, drawn_seed, output, format_choice)
    wanted = ready(out, planned, force, skip_existing)
    if not wanted:
        return
    session = models.open_session(out, model, device, dtype, quantize, task="t2i")
    if seed is None:
        out.note(f"seed {drawn_seed}")
    for text in dict.fromkeys(prompts):
        if session.prompt_was_cut(text):
            most = session.config.caption_tokens
            out.note(f"prompt {shortened(text)!r} is longer than the {most} tokens {session.config.name} reads; cut")
    screen = showing.screen(out) if show else None
    pictures = grids.pictures(prompts, count, drawn_seed) if sheet else wanted
    with out.progress("drawing", total=len(pictures)) as bar:
        watch = showing.follow(bar, screen) if bar.shown else None
        for target, event in grids.gathered(draw(session, pictures, settings, batch_size, watch), sheet):
            if screen is not None:
                screen.show(event.image)
            save(out, session, target, event, force, metadata)


def ready(out: Output, planned: Sequence[Target], force: bool, skip_existing: bool) -> list[Target]:
    """The targets to draw, each known to be writable. Raises InputError before a model is loaded."""
    wanted: list[Target] = []
    seen: set[str] = set()
    for target in planned:
        if target.path is None:
            out.refuse_terminal()
            return [target]
        if skip_existing and target.path.is_file():
            out.note(f"{target.path}: exists, skipped")
            continue
        if str(target.path) in seen:
            raise UsageError(f"{target.path} would be written twice", hint="put {n} into --output")
        seen.add(str(target.path))
        targets.check(target.path, force)
        wanted.append(target)
    return wanted


def draw(
    session: "Session",
    wanted: Sequence[Target],
    settings: dict[str, float | int],
    batch_size: int | None,
    watch: "Callable[[DrawingEvent], None] | None" = None,
) -> "Iterator[tuple[Target, ImageEvent]]":
    """The wanted pictures in order; those that were skipped leave gaps in the seeds."""
    sampling = replace(session.config.image_sampling, **settings) if settings else None  # type: ignore[arg-type]
    start = 0
    while start < len(wanted):
        end = start + 1
        while end < len(wanted) and wanted[end].seed == wanted[start].seed + end - start:
            end += 1
        run = wanted[start:end]
        events = session.stream_generate(
            [t.prompt for t in run], seed=run[0].seed, sampling=sampling, batch_size=batch_size, watch=watch
        )
        yield from ((run[event.index], event) for event in events)
        start = end


def save(out: Output, session: "Session", target: Target, event: "ImageEvent", force: bool, metadata: bool) -> None:
    """Writes one picture and says where."""
    data = encode(target, event, session.config.name if metadata else None)
    if target.path is None:
        out.binary(data)
        return
    targets.write_whole(target.path, data, force)
    out.detail(f"{target.path}: {event.seconds:.1f} s")
    if not out.json:
        out.line(str(target.path))
        return
    out.record(
        {
            "path": str(target.path),
            "prompt": target.prompt,
            "seed": target.seed,
            "width": event.image.width,
            "height": event.image.height,
            "seconds": round(event.seconds, 3),
            "model": session.config.name,
        }
    )


def encode(target: Target, event: "ImageEvent", model: str | None) -> bytes:
    """The bytes of a picture file; a PNG says how it was made when `model` is given."""
    from PIL.PngImagePlugin import PngInfo

    buffer = io.BytesIO()
    if target.format != "png":
        event.image.save(buffer, target.format, quality=95)
        return buffer.getvalue()
    info = PngInfo()
    if model is not None:
        fields = {"prompt": target.prompt, "seed": str(target.seed), "model": model, "version": __version__}
        for key, value in fields.items():
            info.add_itxt(key, value)
    event.image.save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


def shortened(text: str) -> str:
    """At most forty characters of a text, for a remark."""
    return text if len(text) <= 40 else f"{text[:37]}..."
