"""`omnimamba man`: the manual page, made of what every command says of itself."""

import io
import os
from contextlib import redirect_stdout

import typer

from omnimamba_cli import __version__
from omnimamba_cli.cli.app import COMMANDS, build, pages
from omnimamba_cli.cli.option_groups import takes_groups
from omnimamba_cli.cli.options import ReportOptions

WIDTH = 76  # columns of the commands' own help, so that it fits between a page's margins


@takes_groups
def command(ctx: typer.Context, report: ReportOptions) -> None:
    """Print the manual page.

    \b
    omnimamba man | man -l -
    omnimamba man > ~/.local/share/man/man1/omnimamba.1

    It is in the language of man, and says what --help of every command says.
    """
    out = report.configure(ctx)
    text = page()
    if out.json:
        out.record({"name": "omnimamba.1", "text": text})
    else:
        out.piece(text)


def page() -> str:
    """The page in roff."""
    parts = [f'.TH OMNIMAMBA 1 "" "omnimamba {__version__}" "User Commands"\n']
    parts.append(".SH NAME\nomnimamba \\- name what is in a picture and draw pictures from words\n")
    parts.append(f".SH OVERVIEW\n{_verbatim(_help())}")
    for name, (_, summary) in COMMANDS.items():
        parts.append(f".SH OMNIMAMBA {name.upper()}\n{_plain(summary)}\n")
        parts += [_verbatim(_help(*words)) for words, _ in pages(name)]
    return "".join(parts)


def _help(*command: str) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            build(command)([*command, "--help"], prog_name="omnimamba", standalone_mode=False)
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return text.getvalue()


def _verbatim(text: str) -> str:
    return ".PP\n.nf\n" + "".join(f"{_plain(line)}\n" for line in text.strip().split("\n")) + ".fi\n"


def _plain(line: str) -> str:
    """A line that roff prints as it is: no escapes, no requests, hyphens that can be copied."""
    escaped = line.rstrip().replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha")
    escaped = escaped.replace("~", "\\(ti").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped
