"""What TensorRT-LLM lacks, said before anything runs."""

import sys

import pytest

from krakenlm import config, plan
from krakenlm.errors import InputError
from krakenlm.inference.tensorrt import available


@pytest.fixture
def gpus(monkeypatch):
    """Claim GPUs of these compute capabilities."""
    return lambda *capabilities: monkeypatch.setattr(available, "query_gpus", lambda field: list(capabilities))


@pytest.mark.skipif(available.platform.machine() != "x86_64", reason="TensorRT-LLM's release has no other")
def test_nothing_is_missing_where_the_gpus_are_there_and_snakemake_makes_the_environment(gpus):
    gpus("8.0", "9.0")
    assert available.missing("cuda", 2, environments=True) == []


@pytest.mark.skipif(available.platform.machine() != "x86_64", reason="TensorRT-LLM's release has no other")
def test_nothing_is_missing_where_this_python_has_the_release(gpus, standin):
    gpus("8.9")
    assert available.missing("cuda", 1, environments=False) == []


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ((), "found none"),
        (("8.0",), "found capabilities 8.0"),
        (("10.0", "10.0"), "found capabilities 10.0, 10.0"),
        (("7.5", "[N/A]"), r"found capabilities 7.5, \[N/A\]"),
    ],
)
def test_gpus_that_are_missing_too_old_or_too_new_are_named(gpus, capabilities, found):
    gpus(*capabilities)
    missing = ", ".join(available.missing("cuda", 2, environments=True))
    assert available.re.search(rf"2 NVIDIA GPU\(s\) of compute capability 8\.0 to 9\.0 \({found}\)", missing)


def test_a_python_without_it_is_named(gpus):
    gpus("8.0")
    missing = ", ".join(available.missing("cuda", 1, environments=False))
    assert f"tensorrt_llm 0.12.0 in this Python ({sys.executable}; found none)" in missing
    assert "profiles/tensorrt-llm" in missing


def test_auto_is_tensorrt_llm_only_where_nothing_is_missing_and_jobs_inherit_the_answer(monkeypatch):
    monkeypatch.setenv("KRAKENLM_ENGINE", "")
    monkeypatch.delenv("KRAKENLM_ENGINE")
    with pytest.raises(InputError, match="expected the main process to have resolved auto"):
        config.find_engine("auto", [], main_process=False)
    assert config.find_engine("auto", [], main_process=True) == "tensorrt_llm"
    assert config.find_engine("auto", ["a GPU"], main_process=False) == "tensorrt_llm"
    assert config.find_engine("auto", ["a GPU"], main_process=True) == "torch"
    assert config.find_engine("tensorrt_llm", ["a GPU"], main_process=True) == "tensorrt_llm"


def test_only_jobs_that_need_it_are_refused():
    plan.refuse_missing_tensorrt_llm([("ttft", {}), ("train", {})], ["a GPU"])
    plan.refuse_missing_tensorrt_llm([("tensorrt_ttft", {})], [])
    with pytest.raises(InputError, match=r"engine: expected a GPU, and a Python for tensorrt_llm; provide it"):
        plan.refuse_missing_tensorrt_llm([("tensorrt_ttft", {})], ["a GPU", "a Python"])
