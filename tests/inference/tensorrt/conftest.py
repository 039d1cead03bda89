import importlib
import sys
from pathlib import Path

import pytest
from tensorrt_cases import write_model

from krakenlm.inference import tensorrt
from krakenlm.inference.collectives import run_threads
from krakenlm.inference.shards import write_shards
from krakenlm.inference.tensorrt import build

STANDIN = Path(__file__).parent / "standin"


@pytest.fixture
def standin(monkeypatch):
    """The stand-in as the `tensorrt_llm` that krakenlm imports."""
    monkeypatch.syspath_prepend(STANDIN)
    yield importlib.import_module("tensorrt_llm")
    for name in list(sys.modules):
        if name.partition(".")[0] in ("tensorrt_llm", "mpi4py") or name == "krakenlm.inference.tensorrt.definitions":
            del sys.modules[name]
    vars(tensorrt).pop("definitions", None)  # which has the names of the stand-in that is gone


@pytest.fixture
def on_ranks(standin, tmp_path):
    """Call `function(model, rank's record)` on every rank of a model of these sizes over `tp` ranks."""

    def call(sizes, tp, function, dtype="float32"):
        whole = write_model(tmp_path / "model", sizes)
        write_shards(tmp_path / "model", tmp_path / "shards", tp)

        def body(comm):
            from tensorrt_llm.functional import on_rank

            with on_rank(comm) as record:
                return function(build.load_model(tmp_path / "shards", comm.rank, dtype), record)

        # Modules are made and named before threads import them.
        importlib.import_module("krakenlm.inference.tensorrt.definitions")
        return whole.eval(), run_threads(tp, body)

    return call
