"""The commands at full size: time from the imports to the first token, peak memory, rate, each in a process of its own.

    python -m tests.full_size FILES && omnimamba download --from FILES --dir MODEL
    python -m tests.timing.full MODEL [--device D] [--pictures N] [--json FILE]

The first run of each command also compiles kernels and reads the files from the disk; the later ones are warm. `peak`
is the allocator's on a GPU, `resident` the process's. Random weights never end a text: --max-new-tokens is its length.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.timing.machine import Log

# runs the command line, then leaves word of what it took; what Python imports is timed apart, since on a slow disk it
# is most of all
PROGRAM = """
import json, resource, sys, time
begun = time.perf_counter()
import torch
from omnimamba_cli.__main__ import run
import omnimamba_cli.engine.session
imported = time.perf_counter()
code = run()
took = time.perf_counter() - imported
peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
held = torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else None
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with open({facts!r}, "w") as file:
    gib = dict(peak=peak, held=held, resident=rss)
    json.dump(dict(imports=imported - begun, work=took, bytes=gib), file)
sys.exit(code)
"""


def command(log: Log, name: str, folder: Path, *words: str) -> float:
    """One command; its seconds after the imports."""
    facts = folder / "facts.json"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(facts=str(facts)), *words],
        cwd=folder,
        env={
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-1500:]}")
    found = json.loads(facts.read_text())
    memory = {k: round(v / 2**30, 2) for k, v in found["bytes"].items() if v is not None}
    log.line(
        f"{name:32} {seconds:6.2f} s, imports {found['imports']:5.2f}, the rest {found['work']:6.2f}   GiB {memory}"
    )
    if "-v" in words:
        log.line("    " + "\n    ".join(done.stderr.strip().splitlines()))
    log.fact(name=name, seconds=seconds, imports=found["imports"], work=found["work"], gib=memory)
    return float(found["work"])


def photographs(folder: Path, count: int) -> Path:
    """JPEGs of 640 x 480, no two alike."""
    folder.mkdir()
    gradient = Image.radial_gradient("L").resize((640, 480))
    for i in range(count):
        channels = [gradient.rotate(7 * i), gradient.rotate(90 + 11 * i), gradient.rotate(13 * i)]
        Image.merge("RGB", channels).save(folder / f"{i:05}.jpg")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pictures", type=int, default=400, help="for the rate of 20-token captions; 0 leaves it out")
    parser.add_argument("--batch-size", type=int, default=0, help="of the rate; 0 is the command's own")
    parser.add_argument("--warm", type=int, default=2, help="runs of each command after the first")
    parser.add_argument("--json", type=Path, help="results as JSON lines")
    given = parser.parse_args()
    log = Log(given.json)
    common = ("-m", str(given.model.resolve()), "--offline", "--device", given.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder / "one", 1)
        photo = str(folder / "one" / "00000.jpg")
        for i in range(1 + given.warm):
            word = "first run" if i == 0 else "warm"
            verbose = ("-v",) if i == given.warm else ()
            first = ("--max-new-tokens", "1", *common, *verbose)
            start = command(log, f"caption, one token, {word}", folder, "caption", photo, "what is here?", *first)
        command(log, "caption, 64 tokens", folder, "caption", photo, "--max-new-tokens", "64", *common)
        for i in range(1 + given.warm):
            word = "first run" if i == 0 else "warm"
            verbose = ("-v",) if i == given.warm else ()
            output = ("-o", "bed.png", "--force", "--seed", "1")
            command(log, f"generate, {word}", folder, "generate", "a bed in a bedroom", *output, *common, *verbose)
        if given.pictures:
            many = photographs(folder / "many", given.pictures)
            size = ("--batch-size", str(given.batch_size)) if given.batch_size else ()
            words = ("caption", str(many), "--recursive", "--max-new-tokens", "20", "--json", *size, *common, "-v")
            seconds = command(log, f"{given.pictures} captions of 20 tokens", folder, *words)
            rate, later = given.pictures / seconds, (given.pictures - 1) / (seconds - start)
            log.line(f"{rate:.1f} captions a second, start included; {later:.1f} without what one picture takes")
            log.fact(name="captions a second", rate=rate, after_start=later, pictures=given.pictures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
