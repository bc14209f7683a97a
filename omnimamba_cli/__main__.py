"""`python -m omnimamba_cli` and `omnimamba`: the command line, which can be stopped from its first moment on."""

import os
import sys

from omnimamba_cli.cli.stopping import stoppable
from omnimamba_cli.errors import ExitCode


def run() -> int:
    """The command line of this process; returns its exit code."""
    try:
        with stoppable():
            from omnimamba_cli.cli.app import main

            code = main()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    pipeline = sys.modules.get("omnimamba_cli.engine.pipeline")
    if pipeline is not None and pipeline.threads_are_left():
        # such as one that waits for a pipe: if Python ended it on a normal exit, C++ would abort the process
        os._exit(code)  # nothing is lost: all output is flushed as it is printed
    return code


if __name__ == "__main__":
    sys.exit(run())
