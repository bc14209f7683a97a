"""The command `omnimamba`: which subcommands there are, and how an error becomes an exit code.

Loads only the subcommand that was asked for; nothing here imports torch.
"""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated

import typer

from omnimamba_cli import __version__
from omnimamba_cli.cli import settings
from omnimamba_cli.cli.output import ColorChoice, Output, silence_stdout, use_utf8
from omnimamba_cli.cli.stopping import stoppable
from omnimamba_cli.errors import (
    DeviceError,
    ExitCode,
    InputError,
    OmniMambaError,
    file_reason,
    kernel_reason,
    memory_reason,
)

# command: (module in this folder, its line in `omnimamba --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "caption": ("caption", "Say what is in pictures, or answer a question about them."),
    "chat": ("chat", "Ask about a picture, again and again; draw one and ask about it."),
    "generate": ("generate", "Draw pictures from words."),
    "download": ("download", "Fetch the published model and make it ready."),
    "models": ("list_models", "List the installed models."),
    "remove": ("remove", "Delete an installed model."),
    "export": ("export", "Make a folder that can be shared on the Hub."),
    "convert": ("convert", "Make a model directory from published checkpoint files."),
    "doctor": ("doctor", "Show versions, devices, kernels and installed models."),
    "bench": ("bench", "Measure speed and memory, beside Transformers and what the hardware allows."),
    "eval": ("eval", "Measure how well a model names and draws."),
    "data": ("data", "Look at training data before anyone trains on them."),
    "train-tokenizer": ("train_tokenizer", "Train a text tokenizer (BPE) or an image tokenizer (VQ)."),
    "tokenize": ("tokenize", "Turn pictures with captions into training tokens."),
    "train-stage1": ("train_stage1", "Train one task's own parts."),
    "train-stage2": ("train_stage2", "Train both tasks together."),
    "man": ("man", "Print the manual page."),
}

ALIASES = {"benchmark": "bench"}  # other words for a command, not listed

EPILOG = """\b
Taken anywhere on the line:
  --config FILE      a file of defaults, not ~/.config/omnimamba/config.toml;
                     of tokenize and train-*: the options of that run
  --no-config        no file of defaults

\b
Environment (an option wins over it, it wins over the file of defaults):
  OMNIMAMBA_CONFIG   what --config would say; empty is --no-config
  OMNIMAMBA_MODEL    what --model would say
  OMNIMAMBA_DEVICE   what --device would say
  OMNIMAMBA_DTYPE    what --dtype would say
  OMNIMAMBA_SEED     what --seed would say
  OMNIMAMBA_KERNELS  auto, torch, triton or mamba-ssm
  NO_COLOR, FORCE_COLOR, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured.

\b
Exit codes:
  0  done                     5    device, kernel or memory
  1  a bug in this program    6    some of the inputs failed
  2  wrong use                130  stopped by Ctrl-C
  3  input or output file     141  the reader of stdout went away
  4  model or download        143  ended by SIGTERM
"""

SETTINGS = {"help_option_names": ["-h", "--help"]}
FILE_ERRORS = {  # what a disk or a path can say; other OSErrors are bugs
    getattr(errno, name)
    for name in ("EACCES EDQUOT EEXIST EFBIG EIO EISDIR ELOOP ENAMETOOLONG ENOENT ENOSPC ENOTDIR EPERM EROFS".split())
    if hasattr(errno, name)  # Windows lacks some
}


def _print_version(wanted: bool) -> None:
    if wanted:
        Output().line(f"omnimamba {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Name what is in a picture and draw pictures from words, with one small model.

    \b
    omnimamba generate "a red fox" -o fox.png
    omnimamba caption fox.png "what is here?"
    omnimamba COMMAND --help
    """


def _listed_only() -> None:
    """Stands in for a command that was not asked for: it is listed in --help, but its module is not loaded."""
    raise AssertionError("a command was run that was not loaded")


def load_command(name: str) -> Callable[..., object] | typer.Typer:
    """The function behind a subcommand, or the application of one that has subcommands of its own."""
    module = import_module(f"omnimamba_cli.cli.{COMMANDS[name][0]}")
    command: Callable[..., object] | typer.Typer = module.command
    return command


def pages(name: str) -> list[tuple[tuple[str, ...], Callable[..., object]]]:
    """A command and its subcommands: the words on the command line, and the function whose docstring is the help."""
    loaded = load_command(name)
    if not isinstance(loaded, typer.Typer):
        return [((name,), loaded)]
    group = loaded.registered_callback
    assert group is not None
    assert group.callback is not None
    below = [(name, str(info.name or info.callback.__name__)) for info in loaded.registered_commands if info.callback]
    functions = [info.callback for info in loaded.registered_commands if info.callback]
    return [((name,), group.callback), *zip(below, functions, strict=True)]


def build(arguments: Sequence[str], config: str | None = "") -> typer.Typer:
    """The application for one command line: the named subcommand in full, the others as a name and a line of help.

    `config` is the file of defaults ("" is none, None the user's own).
    """
    # a shell that asks for completions puts the line into the environment: bash the one, zsh and fish the other
    line = f"{os.environ.get('COMP_WORDS', '')} {os.environ.get('_TYPER_COMPLETE_ARGS', '')}"
    completing = "_OMNIMAMBA_COMPLETE" in os.environ
    if completing:
        os.environ["COLUMNS"] = "1000"  # a description that is wrapped would be taken for another candidate
    words = line.split()[1:] if completing else arguments
    named = next((word for word in words if not word.startswith("-")), None)
    context = {**SETTINGS, "default_map": _defaults(named, config)}
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=context,
        epilog=EPILOG,
    )
    app.callback()(_root)
    for name, (_, summary) in COMMANDS.items():
        loaded = load_command(name) if name == named else None
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=name, short_help=summary)
        elif loaded is not None:
            app.command(name, short_help=summary)(loaded)
        else:
            app.command(name, help=summary)(_listed_only)
    for alias, name in ALIASES.items():
        loaded = load_command(name) if alias == named else _listed_only
        assert not isinstance(loaded, typer.Typer)
        app.command(alias, hidden=True)(loaded)
    return app


def _defaults(named: str | None, config: str | None) -> dict[str, object]:
    """The file's defaults for the named command, as the parser takes them."""
    name = ALIASES.get(named or "", named)
    if name not in COMMANDS or (found := settings.read(config)) is None:
        return {}
    return {str(named): settings.defaults(*found, name, load_command(name), [*COMMANDS])}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # read when torch is loaded: threads that wait for each other sleep. If they spun, each of a picture's thousands of
    # small operations would wait for a time slice on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    out = Output()
    try:
        use_utf8()
        out = Output()
        with stoppable():
            arguments, config = settings.take_option(arguments)
            result = build(arguments, config)(
                arguments or ["--help"], prog_name="omnimamba", standalone_mode=False, obj=out
            )
    except KeyboardInterrupt:
        if argv is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # we are ending: a second Ctrl-C would print a traceback
        return ExitCode.INTERRUPTED
    except SystemExit as stop:
        # the parser swaps stdout when the reader of its help has gone, and would exit with 1
        return stop.code if sys.stdout is out.stdout and isinstance(stop.code, int) else ExitCode.CLOSED_PIPE
    except BrokenPipeError:
        silence_stdout()
        return ExitCode.CLOSED_PIPE
    except Exception as error:
        return report(error, out, arguments)
    if not arguments:
        return ExitCode.USAGE
    return result if isinstance(result, int) else ExitCode.DONE


def report(error: Exception, out: Output, arguments: Sequence[str] = ()) -> int:
    """Says what went wrong in one line, and what to do in another; returns the exit code."""
    known = as_known(error)
    if known is not None:
        out.error(known.message, known.hint)
        out.traceback(error)
        return known.exit_code
    if hasattr(error, "format_message"):  # the parser's own errors; its classes move between versions
        where = getattr(getattr(error, "ctx", None), "command_path", "omnimamba")
        # some versions of the parser and of Typer both suggest, one after the other
        message = re.sub(r"( Did you mean [^?]*\?)\1", r"\1", str(error.format_message()))
        message = message.replace(": Value error, ", ": ")  # a library's prefix, which says nothing
        unknown = getattr(error, "option_name", None)
        out.color = _color_of(arguments)
        out.error(message, hint=_option_hint(str(unknown), where, arguments) if unknown else f"{where} --help")
        return ExitCode.USAGE
    hint = None if out.verbose >= 2 else "this is a bug; run again with -vv to see where"
    out.error(f"{type(error).__name__}: {error}".rstrip(": "), hint)
    out.traceback(error)
    return ExitCode.BUG


def _color_of(arguments: Sequence[str]) -> ColorChoice:
    """The --color of a command line that could not be parsed."""
    said = re.search(r"(?:^|\0)--color[=\0](always|never)", "\0".join(arguments))
    return "auto" if said is None else "always" if said.group(1) == "always" else "never"


def _option_hint(unknown: str, where: str, arguments: Sequence[str]) -> str:
    """A hint for an unknown option: perhaps it is a file's name, or it stands before the command."""
    file = next((a for a in arguments if a.startswith("-") and a.startswith(unknown) and os.path.lexists(a)), None)
    if file is not None:
        return f"the file is ./{file}"
    command = next((a for a in arguments if a in COMMANDS), None)
    if where == "omnimamba" and command is not None:
        return f"options stand after the command: omnimamba {command} {unknown}"
    return f"{where} --help"


def as_known(error: Exception) -> OmniMambaError | None:
    """The error a user can act on, or None for a bug."""
    if isinstance(error, OmniMambaError):
        return error
    if (reason := memory_reason(error)) is not None:
        return DeviceError(f"out of memory: {reason}", hint="try a smaller batch, --dtype fp16 or --device cpu")
    if (reason := kernel_reason(error)) is not None:
        return DeviceError(f"a kernel does not run on this GPU: {reason}", hint="set OMNIMAMBA_KERNELS=torch")
    if isinstance(error, OSError) and error.errno in FILE_ERRORS:
        name = f"{error.filename}: " if error.filename is not None else ""
        return InputError(f"{name}{file_reason(error)}")
    return None
