"""Metrics for TensorBoard, besides metrics.jsonl. The library is imported only for --tensorboard."""

from pathlib import Path
from typing import Any

from omnimamba_cli.errors import UsageError
from omnimamba_cli.train.events import Evaluated, Event, Progress


class Board:
    """An event file in FOLDER/tensorboard; a resumed run drops what came after its snapshot."""

    def __init__(self, folder: Path, step: int) -> None:
        self.writer = summary_writer()(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, event: Event) -> None:
        """The numbers of a report or an evaluation, on disk."""
        if isinstance(event, Progress | Evaluated):
            for name, value in event.values.items():
                self.writer.add_scalar(name, value, event.step)
            self.writer.flush()


def summary_writer() -> Any:  # Any: a class of a library that may not be there
    """TensorBoard's writer. Raises UsageError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(f"--tensorboard needs a library ({error})", hint="pip install tensorboard") from None
    return SummaryWriter
