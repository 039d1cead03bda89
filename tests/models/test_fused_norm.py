"""Where LayerNorm of splits may be one Triton kernel: only where Triton would find a compiler."""

import pytest

from krakenlm.models import blocks


@pytest.mark.parametrize("value", ["", "/nowhere/cc"])
def test_without_a_compiler_norms_are_pytorchs_own(value, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    monkeypatch.setenv("CC", value)
    if not value:
        monkeypatch.setenv("PATH", "/nowhere")
    assert blocks.fused_norm.__wrapped__() is None


def test_the_compiler_that_is_named_is_the_one_that_counts(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("importlib.import_module", lambda name: name)
    assert blocks.fused_norm.__wrapped__() == "krakenlm.models.fused_norm"
