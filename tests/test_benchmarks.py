"""Benchmarks are run by hand; what they import has to be there all the same."""

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_name_that_a_benchmark_imports_from_this_package_is_there(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if node.module.split(".")[0] == "krakenlm":
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}"), name.name


def test_the_simulators_benchmark_gives_the_timing_all_that_it_takes(tmp_path, monkeypatch):
    [path] = [path for path in BENCHMARKS if path.stem == "simulator_validation"]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    signature, calls = inspect.signature(benchmark.measure_ttft), []
    monkeypatch.setattr(benchmark, "measure_ttft", lambda **given: calls.append(signature.bind(**given)))
    benchmark.measure(tmp_path, "loopback")
    assert len(calls) == 6
