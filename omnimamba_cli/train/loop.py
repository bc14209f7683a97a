"""The one training loop: every stage and the image tokenizer run through it.

A run is a function of its settings and its step: random numbers are seeded by (seed, step, process) and the data by
position, so a snapshot is weights, moments and a step number, and a resumed run repeats the rest to the last bit.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omnimamba_cli.data.files import DataFile
from omnimamba_cli.errors import InputError, UsageError
from omnimamba_cli.train import snapshots
from omnimamba_cli.train.events import Evaluated, Event, Finished, Note, Progress, Saved
from omnimamba_cli.train.loop_config import LoopConfig
from omnimamba_cli.train.metrics import MetricsFile
from omnimamba_cli.train.optimiser import Average, adamw, clip_gradients, learning_rate
from omnimamba_cli.train.sharding import is_sharded, make_whole, whole
from omnimamba_cli.train.state import check_finite, fingerprint, held_out_changed, restore, tensors_of

AGREE_EVERY = 10  # steps between two times that processes ask each other whether to go on


class Job(Protocol):
    """What is trained and on what; the loop knows neither."""

    @property
    def module(self) -> nn.Module:
        """Its forward takes (micro-batch, totals) and returns named values; "loss" is differentiated."""
        ...

    def batches(self, step: int) -> Iterator[Sequence[Any]]:  # Any: the job's own micro-batches
        """The micro-batches of each step from `step` on, on the device; each has `tokens`, a plain number."""
        ...

    def totals(self, micros: Sequence[Any]) -> dict[str, int]:
        """Number of targets in a step's micro-batches, by name of the loss; forward gets them as `totals`."""
        ...

    def after_step(self, step: int, progress: float, average: Average) -> list[Event]:
        """Called after step `step` (from 0); `progress` (0 to 1) of the run is over. May change weights."""
        ...

    def report(self) -> dict[str, float]:
        """More values for a report; may wait for the device."""
        ...


class HeldOut(Protocol):
    """Data that nothing trains on."""

    @property
    def files(self) -> Sequence[DataFile]:
        """The data files."""
        ...

    def losses(self, module: nn.Module, accelerate: Accelerator) -> dict[str, float]:
        """Losses by name, "eval_loss" among them, the same in every process. The module is in eval mode."""
        ...


class Loop:
    """Runs a job; `run` yields what happens."""

    def __init__(
        self,
        job: Job,
        config: LoopConfig,
        accelerate: Accelerator,
        folder: Path,
        *,
        data: Sequence[DataFile] = (),
        held_out: HeldOut | None = None,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.job, self.config, self.accelerate, self.folder = job, config, accelerate, folder
        self.data, self.held_out, self.should_stop = data, held_out, should_stop
        self.best: dict[str, float] = {}  # step and eval_loss of the best evaluation
        self.step = 0  # steps done
        self.seconds_before = 0.0
        trained = [p for p in job.module.parameters() if p.requires_grad]
        if not trained:
            raise UsageError("nothing is left to train", hint="--unfreeze PART")
        self.optimizer = adamw(trained, lr=config.lr, weight_decay=config.weight_decay)
        self.wrapped, self.stepper = accelerate.prepare(job.module, self.optimizer)
        # after prepare: FSDP has replaced the parameters
        self.parameters = {n: p for n, p in job.module.named_parameters() if p.requires_grad}
        self.sharded = is_sharded(job.module)
        self.average = Average(self.parameters, config.ema)
        self.window: dict[str, Tensor] = {}  # sums since the last report, on the device
        self.window_steps = 0
        self.window_tokens = 0
        self.last_values: dict[str, float] = {}
        self.agreement: tuple[int, float, bool] | None = None  # the step, and what _agreed returned there

    @property
    def snapshot_folder(self) -> Path:
        """Where this run keeps its snapshots."""
        return self.folder / "snapshots"

    def run(self) -> Iterator[Event]:
        """Train to the last step, or until time is up or a stop is asked for; a snapshot is left either way."""
        c = self.config
        self.started = self.window_started = self.saved_at = time.monotonic()
        main = self.accelerate.is_main_process
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.step) if main else None
        self.job.module.train()
        batches = self.job.batches(self.step)
        while self._progress() < 1:
            if reason := self._stop_reason():
                yield self._save()
                yield Finished(step=self.step, steps=c.steps, complete=False, reason=reason, values=self.last_values)
                return
            self.take_step(next(batches))
            yield from self.job.after_step(self.step - 1, self._progress(), self.average)
            if self.step % c.log_every == 0 or self.step == c.steps:
                yield self._report()
            if self._evaluation_due():
                yield from self._evaluate()
            if self._save_due():
                yield self._save()
        reason = "all steps done"
        if self.step < c.steps:
            reason = f"the {c.clock_minutes:g} minutes of --clock-minutes are over"
            if self.window_steps:
                yield self._report()
            yield self._save()
        yield Finished(step=self.step, steps=c.steps, complete=True, reason=reason, values=self.last_values)

    def try_out(self, count: int) -> Iterator[Progress]:
        """Take `count` real steps and write nothing; the weights do change."""
        self.started = self.window_started = time.monotonic()
        self.metrics = None
        self.job.module.train()
        batches = self.job.batches(self.step)
        for _ in range(count):
            self.take_step(next(batches))
            yield self._report()

    def seconds(self) -> float:
        """Seconds of training, with the earlier parts of a resumed run."""
        return self.seconds_before + time.monotonic() - self.started

    def _progress(self) -> float:
        """Share of the run that is over, by steps or by the clock."""
        by_step = self.step / self.config.steps
        if not self.config.clock_minutes:
            return by_step
        return max(by_step, self._agreed()[0])

    def _rate(self, step: int) -> float:
        """Learning rate of a step. With --clock-minutes, time may put it further on in the curve."""
        c = self.config
        if c.clock_minutes and step >= c.warmup:
            step = max(step, c.warmup + int(self._progress() * (c.steps - c.warmup)))
        return learning_rate(step, peak=c.lr, warmup=c.warmup, steps=c.steps, floor=c.lr_floor)

    def _agreed(self) -> tuple[float, bool]:
        """The share of --clock-minutes that is over, and whether a process wants to stop.

        Clocks and signals differ between processes, but all must take the same number of steps. They agree only every
        AGREE_EVERY steps, because they wait for one another then.
        """
        if self.accelerate.num_processes == 1:
            return self._clock(), self._own_stop_reason() is not None
        if self.agreement is None or (self.step % AGREE_EVERY == 0 and self.agreement[0] != self.step):
            mine = torch.tensor([[self._clock(), self._own_stop_reason() is not None]], dtype=torch.float64)
            over, stop = self.accelerate.gather(mine.to(self.accelerate.device)).amax(0).tolist()
            self.agreement = (self.step, over, bool(stop))
        return self.agreement[1], self.agreement[2]

    def _clock(self) -> float:
        minutes = self.config.clock_minutes
        return self.seconds() / (60 * minutes) if minutes else 0.0

    def _stop_reason(self) -> str | None:
        if not self._agreed()[1]:
            return None
        return self._own_stop_reason() or "another process was stopped"

    def _own_stop_reason(self) -> str | None:
        minutes = (time.monotonic() - self.started) / 60
        if self.config.max_minutes and minutes >= self.config.max_minutes:
            return f"the {self.config.max_minutes:g} minutes of --max-minutes are over"
        return self.should_stop()

    def take_step(self, micros: Sequence[Any]) -> None:
        """Forward, backward and update on a step's micro-batches; does not wait for the device."""
        c = self.config
        torch.manual_seed(_seed(c.seed, self.step, self.accelerate.process_index))
        rate = self._rate(self.step)
        for group in self.stepper.param_groups:
            group["lr"] = rate
        totals = self._totals(micros)
        for number, micro in enumerate(micros):
            last = number == len(micros) - 1
            with contextlib.nullcontext() if last else self.accelerate.no_sync(self.wrapped):
                values = self.wrapped(micro, totals)
                self.accelerate.backward(values["loss"])
            self._add({name: value.detach() for name, value in values.items()})
        norm = clip_gradients(self.accelerate, self.optimizer, list(self.parameters.values()), c.clip)
        self._add({"grad_norm": self._counted(norm.detach())})
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.average.update(self.step)
        self.window_steps += 1
        self.window_tokens += sum(m.tokens for m in micros)
        self.step += 1

    def _counted(self, norm: Tensor) -> Tensor:
        """The gradient's norm; 0 where fp16 overflowed, since the scaler leaves that step out."""
        norm = whole(norm)
        return norm if self.accelerate.scaler is None else torch.nan_to_num(norm, nan=0.0, posinf=0.0)

    def _totals(self, micros: Sequence[Any]) -> dict[str, Tensor]:
        """Number of targets of the whole step, float32: the mean over processes, since gradients are averaged, too.

        Never 0. The numbers stay on the device: it would be idle while a step waited for the other processes' numbers.
        """
        counts = self.job.totals(micros)
        summed = torch.tensor(list(counts.values()), dtype=torch.float32)
        if self.accelerate.device.type == "cuda":
            summed = summed.pin_memory()
        summed = summed.to(self.accelerate.device, non_blocking=True)
        if self.accelerate.num_processes > 1:
            summed = self.accelerate.reduce(summed, "mean")
        return dict(zip(counts, summed.clamp(min=1 / self.accelerate.num_processes).unbind(), strict=True))

    def _add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            if name in self.window:
                self.window[name] += value
            else:
                self.window[name] = value.clone()

    def _report(self) -> Progress:
        """Means of the window; the one place that waits for the device."""
        names = sorted(self.window, key=lambda name: (name != "loss", name))
        summed = torch.stack([self.window[n].double() for n in names])
        ranks = self.accelerate.num_processes
        sums = (self.accelerate.reduce(summed, "mean") if ranks > 1 else summed).tolist()
        values = {n: s / self.window_steps for n, s in zip(names, sums, strict=True)}
        check_finite(self.step, loss=values["loss"], grad_norm=values["grad_norm"])
        now = time.monotonic()
        c = self.config
        values["lr"] = self._rate(self.step - 1)
        values["tokens_per_s"] = round(ranks * self.window_tokens / max(now - self.window_started, 1e-9), 1)
        values.update(self.job.report())
        self.window, self.window_steps, self.window_tokens, self.window_started = {}, 0, 0, now
        self.last_values = values
        report = Progress(step=self.step, steps=c.steps, values=values, seconds=self.seconds())
        if self.metrics is not None:
            self.metrics.write(report.step, report.values, report.seconds)
        return report

    def _evaluation_due(self) -> bool:
        every = self.config.eval_every
        return self.held_out is not None and every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _evaluate(self) -> Iterator[Evaluated]:
        """Losses of the averaged weights on held-out data; the weights stay swapped in until the next event."""
        assert self.held_out is not None
        begun = time.monotonic()
        self.average.swap()
        self.wrapped.eval()
        with torch.no_grad():
            values = self.held_out.losses(self.wrapped, self.accelerate)
        best = values["eval_loss"] < self.best.get("eval_loss", math.inf)
        if best:
            self.best = {"step": self.step, "eval_loss": values["eval_loss"]}
        if self.metrics is not None:
            self.metrics.write(self.step, values, self.seconds())
        yield Evaluated(step=self.step, steps=self.config.steps, values=values, best=best)
        self.wrapped.train()
        self.average.swap()
        self.window_started += time.monotonic() - begun

    def _save_due(self) -> bool:
        c = self.config
        if self.step >= c.steps:
            return True
        by_time = c.save_minutes and time.monotonic() - self.saved_at >= 60 * c.save_minutes
        return bool(by_time) or bool(c.save_every and self.step % c.save_every == 0)

    def _save(self) -> Saved:
        # a snapshot of lost weights would push out the good ones
        check_finite(self.step, grad_norm=float(self.window.get("grad_norm", 0.0)))
        target = self.snapshot_folder / f"step-{self.step:08d}"
        main = self.accelerate.is_main_process
        if main or self.sharded:  # every process must take part in gathering shards
            state = {
                "config": asdict(self.config),
                "frozen": fingerprint(self.job.module, self.parameters),
                "data": [asdict(file) for file in self.data],
                "held_out": [asdict(file) for file in (self.held_out.files if self.held_out else ())],
                "seconds": self.seconds(),
                "window": {"steps": self.window_steps, "tokens": self.window_tokens},
                "best": self.best,
            }
            tensors = tensors_of(self)
            if main:
                target = snapshots.save(self.snapshot_folder, self.step, tensors, state, keep=self.config.keep)
        self.saved_at = time.monotonic()
        return Saved(path=target, step=self.step)

    def resume(self) -> list[Event]:
        """Continue from the newest readable snapshot. Raises InputError where there is none or it is another run's."""
        found, broken = snapshots.latest(self.snapshot_folder)
        if found is None:
            raise InputError(
                f"no snapshot to resume from: {broken[0] if broken else f'{self.snapshot_folder} holds none'}",
                hint="--force in place of --resume starts anew",
            )
        restore(self, found)
        changed = held_out_changed(self, found)
        self.window_steps = found.state["window"]["steps"]
        self.window_tokens = found.state["window"]["tokens"]
        self.step, self.best = found.step, {} if changed else found.state.get("best", {})
        self.seconds_before = float(found.state["seconds"])
        return [Note(text=line) for line in (*broken, *changed, f"resumed at step {self.step}")]

    def close(self) -> None:
        """Undo what accelerate did to the module and give it the averaged weights, for saving and use."""
        self.accelerate.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.average.swap()
        make_whole(self.job.module)
        self.job.module.eval()

    def end(self) -> None:
        """Leave the group of processes when all are done; torch warns about a group that is left open."""
        if self.accelerate.num_processes > 1:
            self.accelerate.wait_for_everyone()
            self.accelerate.end_training()


def _seed(seed: int, step: int, process: int) -> int:
    digest = hashlib.sha256(f"{seed} {step} {process}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
