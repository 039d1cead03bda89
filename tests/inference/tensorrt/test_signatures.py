"""The stand-in against TensorRT-LLM as it is: signatures.json records its source."""

import ast
import importlib
import inspect
import json
import textwrap
from pathlib import Path

import pytest

import krakenlm
from krakenlm.inference.shards import HEAD_SIZES

RECORD = json.loads((Path(__file__).parent / "signatures.json").read_text())
SOURCE = Path(krakenlm.__file__).parent
OURS = [*(SOURCE / "inference" / "tensorrt").glob("*.py"), SOURCE / "latency" / "tensorrt.py"]


def find(name):
    """The stand-in's object, and its class where it is a method."""
    *modules, last = name.split(".")
    inner = [last]
    while modules:
        try:
            found = importlib.import_module(".".join(["tensorrt_llm", *modules]))
            break
        except ModuleNotFoundError:
            inner.insert(0, modules.pop())
    for part in inner:
        found = inspect.getattr_static(found, part)
    return getattr(found, "__func__", found)


def parameters(function):
    arguments = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].args
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(arguments)


def normal(text):
    return ast.unparse(ast.parse(f"def f({text}): pass").body[0].args)


@pytest.mark.parametrize("name", RECORD["signatures"])
def test_the_stand_in_has_the_recorded_parameters_and_defaults(standin, name):
    assert parameters(find(name)) == normal(RECORD["signatures"][name]["parameters"])


def test_every_function_and_class_that_is_imported_from_tensorrt_llm_is_recorded(standin):
    imported = set()
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt_llm"):
                imported |= {(node.module.partition(".")[2], alias.name) for alias in node.names}
    recorded = {tuple(name.split(".")[:-1]) for name in RECORD["signatures"]} | {
        tuple(name.split(".")) for name in RECORD["signatures"]
    }
    callables = {
        (module, name) for module, name in imported if inspect.isclass(find(f"{module}.{name}")) or name.islower()
    }
    constants = {"AllReduceStrategy", "AttentionMaskType", "Module", "Tensor", "SamplingConfig"}
    missing = [
        (module, name)
        for module, name in callables
        if name not in constants and (*module.split("."), name) not in recorded
    ]
    assert missing == []


def test_the_stand_in_refuses_the_head_sizes_that_the_kernels_do(standin):
    from tensorrt_llm.layers import DECODE_HEAD_SIZES, PREFILL_HEAD_SIZES, Attention, AttentionMaskType

    sizes = RECORD["attention_head_sizes"]
    assert list(PREFILL_HEAD_SIZES) == sizes["prefill"]["sizes"]
    assert list(DECODE_HEAD_SIZES) == sizes["decode"]["sizes"]
    assert set(HEAD_SIZES) == {*PREFILL_HEAD_SIZES} & {*DECODE_HEAD_SIZES}

    def attention(size):
        Attention(
            local_layer_idx=0,
            hidden_size=8,
            num_attention_heads=1,
            attention_head_size=size,
            attention_mask_type=AttentionMaskType.causal,
            dtype="float32",
        )

    for size in HEAD_SIZES:
        attention(size)
    for size in (40, 48, 113, 168, 209, 111, 161, 240, 288):
        with pytest.raises(ValueError, match=f"unsupported head_size {size}"):
            attention(size)
