"""Imports point one way, heavy packages have one home each, and one module prints."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import omnimamba_cli

PACKAGE = Path(omnimamba_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# layer: what it may import of the package, besides itself and the leaves
ALLOWED = {
    "cli": {"engine", "train", "data", "model", "ops"},
    "engine": {"train", "data", "model", "ops"},
    "train": {"data", "model", "ops"},
    "model": {"ops"},
    "data": set(),
    "ops": set(),
}
LEAVES = {"errors", "config", "presets", "folders", "json_text"}
# package: the only places that import it
HOMES = {
    "typer": ("cli/",),
    "rich": ("cli/",),
    "click": (),
    "timm": ("model/vision.py",),
    "huggingface_hub": ("engine/remote.py",),
    "webdataset": ("data/shards.py",),
    "mamba_ssm": ("ops/",),
    "causal_conv1d": ("ops/",),
    "triton": ("ops/",),
}
# start without torch
LIGHT = (
    "cli/",
    "__init__.py",
    "__main__.py",
    "errors.py",
    "config.py",
    "presets.py",
    "folders.py",
    "json_text.py",
)
HEAVY = {"torch", "torchvision", "timm", "numpy", "PIL", "tokenizers", "accelerate", "safetensors", "huggingface_hub"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether it runs when the file is imported) of every import but those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from walk(tree, path, True)


def walk(node: ast.AST, path: Path, at_import: bool) -> Iterator[tuple[str, int, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, at_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}:{child.lineno}: imports are absolute"
            for alias in child.names:
                whole = child.module or ""
                yield (f"{whole}.{alias.name}" if whole.startswith("omnimamba_cli") else whole), child.lineno, at_import
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from walk(other, path, at_import)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, path, at_import and not inside)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    layer = name_of(path).split("/")[0] if "/" in name_of(path) else ""
    for module, line, _ in imported(path):
        parts = module.split(".")
        if parts[0] != "omnimamba_cli" or len(parts) < 2 or parts[1] not in ALLOWED:
            continue
        if layer == "":
            assert name_of(path) in ("__init__.py", "__main__.py"), f"line {line}: a leaf imports {module}"
            continue
        assert parts[1] == layer or parts[1] in ALLOWED[layer], f"line {line}: {layer} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_packages_stay_in_their_homes(path: Path) -> None:
    for module, line, _ in imported(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or name_of(path).startswith(homes or ("nowhere",)), f"line {line} imports {module}"


@pytest.mark.parametrize("path", [f for f in FILES if name_of(f).startswith(LIGHT)], ids=name_of)
def test_light_modules_import_nothing_heavy(path: Path) -> None:
    for module, line, at_import in imported(path):
        if at_import:
            assert module.split(".")[0] not in HEAVY, f"line {line} imports {module}"
            assert not module.startswith(("omnimamba_cli.engine", "omnimamba_cli.model", "omnimamba_cli.data")), line


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_output_prints(path: Path) -> None:
    if name_of(path) == "cli/output.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            spot = f"{node.value.id}.{node.attr}"
            assert spot not in ("typer.echo", "typer.secho", "typer.prompt", "typer.confirm"), f"line {node.lineno}"
            if spot in ("sys.stdout", "sys.stderr"):  # app.main only compares
                assert name_of(path) == "cli/app.py", f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_plain_and_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(ast.parse(text)), "a module says what it is for"


def is_kernel(node: ast.FunctionDef) -> bool:
    """A Triton kernel: what is one pass over memory cannot be split without another pass."""
    return any("triton" in ast.dump(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and not is_kernel(node):
            # the signature of a command is its list of options, and its docstring the help text
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.body[0].lineno
            length = node.end_lineno - start + 1
            assert length <= 60, f"{node.name}, line {node.lineno}, has {length} lines"


def test_the_package_imports_without_torch_and_offers_its_names() -> None:
    code = (
        "import sys, omnimamba_cli as om; om.ModelConfig; dir(om);"
        "assert om.__all__ == ['ModelConfig', 'Session', '__version__', 'load'];"
        "assert 'torch' not in sys.modules; om.load; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        omnimamba_cli.lod  # noqa: B018
