"""Modules without memory: the same shapes, and nothing loaded that shapes do not need."""

import subprocess
import sys

from omnimamba_cli.model.lora import merged
from omnimamba_cli.model.meta import on_meta
from omnimamba_cli.model.omnimamba import OmniMamba
from tests.cases import small


def test_shapes_are_those_of_the_real_module() -> None:
    bare, real = on_meta(lambda: OmniMamba(small.CONFIG)), OmniMamba(small.CONFIG)
    assert {n: t.shape for n, t in bare.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}
    assert all(t.is_meta for t in bare.state_dict().values())
    folded = {n: t.shape for n, t in merged(bare, "mmu").state_dict().items()}
    assert folded == {n: t.shape for n, t in merged(real, "mmu").state_dict().items()}


def test_no_compiler_is_loaded_for_shapes() -> None:
    code = (
        "import sys; from omnimamba_cli.model.lora import merged; from omnimamba_cli.model.meta import on_meta;"
        "from omnimamba_cli.model.omnimamba import OmniMamba; from omnimamba_cli.model.vq import VQModel;"
        "from omnimamba_cli.presets import PRESETS; c = PRESETS['nano'];"
        "merged(on_meta(lambda: OmniMamba(c)), 't2i'); on_meta(lambda: VQModel(c.vq));"
        "assert 'torch._dynamo' not in sys.modules, 'a second or two at every start'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
