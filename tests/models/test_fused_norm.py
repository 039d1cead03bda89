"""Where LayerNorm of splits may be one Triton kernel: only where Triton would find a compiler."""

import pytest

from krakenlm.models import blocks


@pytest.fixture
def compilers(tmp_path, monkeypatch):
    """A machine that has Python's headers and no compiler but `clang`."""
    (tmp_path / "clang").write_text("#!/bin/sh\n")
    (tmp_path / "clang").chmod(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("importlib.import_module", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("value", ["", "/nowhere/cc", "gcc"])
def test_a_compiler_that_is_named_and_not_there_is_none(value, compilers, monkeypatch):
    monkeypatch.setenv("CC", value)
    assert blocks.fused_norm.__wrapped__() is None


@pytest.mark.parametrize("value", [None, "clang"])
def test_one_that_is_there_is_enough(value, compilers, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    if value is not None:
        monkeypatch.setenv("CC", value)
    assert blocks.fused_norm.__wrapped__() == "krakenlm.models.fused_norm"


def test_without_pythons_headers_there_is_none(compilers, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    (compilers / "Python.h").unlink()
    assert blocks.fused_norm.__wrapped__() is None
