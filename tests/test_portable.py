"""What also runs in TensorRT-LLM's environment (Python 3.10, no Snakemake, Lightning, wandb, datasets or typer)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "krakenlm"
PORTABLE = sorted(
    path
    for pattern in (
        "models/*.py",
        "inference/**/*.py",
        "latency/*.py",
        "files.py",
        "errors.py",
        "progress.py",
        "text/store.py",
    )
    for path in SOURCE.glob(pattern)
)
BLOCKED = ("snakemake", "lightning", "wandb", "datasets", "typer", "pandas", "lm_eval")


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", PORTABLE, ids=module_name)
def test_parses_as_python_3_10(path):
    ast.parse(path.read_text(), feature_version=(3, 10))


def test_imports_without_the_pipelines_packages():
    block = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in BLOCKED)
    # definitions.py is TensorRT-LLM's own, fused_norm.py Triton's, which PyTorch has for GPUs alone.
    importable = [path for path in PORTABLE if path.name not in ("definitions.py", "fused_norm.py")]
    imports = "".join(f"import {module_name(path)}\n" for path in importable)
    result = subprocess.run([sys.executable, "-c", block + imports], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
