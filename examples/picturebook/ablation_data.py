"""What the runs of an ablation read: made here, or taken from what train_nano.sh made. Used by ablations.py."""

import argparse
import os
from pathlib import Path

import torch

import make
from ablation_plan import Files, say
from omnimamba_cli.data.codes import DrawnCodes
from omnimamba_cli.data.tokenizer import TextTokenizer
from omnimamba_cli.engine import hub
from omnimamba_cli.engine.encoding import Progress, TokenizeSettings, Tokenizing
from omnimamba_cli.engine.starting import part_file
from omnimamba_cli.errors import OmniMambaError, UsageError
from omnimamba_cli.presets import preset


def prepare(args: argparse.Namespace) -> Files:
    """Everything that runs read; what is there is not made again."""
    hub.resolve(args.judge)  # missing is told now, not after the first run
    data = args.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    if args.made is not None:
        made = args.made
        parts = {"tokenizer": made / "tokenizer.json", "vision": made / "tower", "vq": made / "vq"}
        codes, talks = made / "codes.jsonl", made / "talks" / "mmu.json"
        for path in (codes, talks, *parts.values()):
            if not path.exists():
                raise UsageError(f"{path} is not there", hint="run train_nano.sh up to its step tower, or leave --made")
    else:
        parts = dict.fromkeys(("tokenizer", "vision", "vq"), hub.resolve(args.parts))
        codes, talks = data / "codes.jsonl", data / "talks" / "mmu.json"
        _make(args, "captions", args.captions, data / "captions", "captions.jsonl", seed=2)
        _tokenize(args, data / "captions" / "captions.jsonl", parts["vq"], codes)
        _make(args, "train-mmu", args.talks, data / "talks", "mmu.json", seed=3)
    _make(args, "held-out", args.held_out, data / "held-out", "captions.jsonl", seed=0)
    held_out = data / "held-out.jsonl"
    _tokenize(args, data / "held-out" / "captions.jsonl", parts["vq"], held_out)
    _make(args, "eval", max(args.questions, args.draw), data / "eval", "prompts.jsonl", seed=0)
    # read once here: runs that begin together find the parsed forms
    config = preset(args.preset)
    tokenizer = TextTokenizer.from_file(part_file(parts["tokenizer"], "tokenizer.json"), config.text)
    for path in (codes, held_out):
        DrawnCodes((path,), config, tokenizer)
    return Files(talks=talks, codes=codes, held_out=held_out, evaluation=data / "eval", **parts)


def _make(args: argparse.Namespace, command: str, n: int, out: Path, last: str, *, seed: int) -> None:
    if (out / last).is_file():
        return
    flags = ["--n", str(n), "--out", str(out), "--seed", str(seed)]
    if code := make.main([str(args.data), command, *flags]):
        raise OmniMambaError(f"make.py {command} ended with exit code {code}")


def _tokenize(args: argparse.Namespace, captions: Path, vq: Path, codes: Path) -> None:
    """As `omnimamba tokenize`; goes on where it stopped."""
    if codes.is_file():
        return
    on_gpu = args.device != "cpu" and torch.cuda.is_available()
    workers = max(1, min(16, os.cpu_count() or 1)) if on_gpu else 0
    settings = TokenizeSettings(
        data=(captions,), vq=vq, output=codes, batch=512 if on_gpu else 64, workers=workers, device=args.device
    )
    for event in Tokenizing(settings).run():
        if isinstance(event, Progress) and (event.step == event.steps or event.step % (64 * 512) == 0):
            say(f"{codes.name}: {event.step:,} of {event.steps:,} pictures")
    if on_gpu:
        torch.cuda.empty_cache()  # for the runs
