"""Weights from elsewhere: the logits are the source's, and nothing but tensors is read."""

import json
import pickle

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.models.importing import import_authors, import_gpt2, import_model

ARGUMENTS = {
    "n_layer": 3,
    "n_head": 4,
    "n_embd": 20,
    "block_size": 32,
    "bias": False,
    "vocab_size": 96,
    "dropout": 0.0,
    "n_heads_in_split": 2,
    "is_split": True,
    "ffn_expansion": 2,
}


def authors_state(arguments):
    """A state dict with the names and shapes of the authors' release."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    d, hidden = arguments["n_embd"], arguments["ffn_expansion"] * arguments["n_embd"]
    splits = arguments["n_head"] // arguments["n_heads_in_split"]
    shapes = {"ln_1": (d,), "attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "ln_2": (d,)}
    shapes |= {"mlp.c_fc": (hidden, d), "mlp.c_proj": (d, hidden)}
    state = {"transformer.wte.weight": drawn(arguments["vocab_size"], d)}
    state["transformer.wpe.weight"] = drawn(arguments["block_size"], d)
    for split in range(splits):
        for layer in range(arguments["n_layer"]):
            for name, shape in shapes.items():
                prefix = f"transformer.h.{split}.{layer}.{name}"
                state[f"{prefix}.weight"] = drawn(*shape)
                if arguments["bias"]:
                    state[f"{prefix}.bias"] = drawn(shape[0])
    outer = {"transformer.conjunction": (d, splits * d), "transformer.ln_f": (d,)}
    for name, shape in outer.items():
        state[f"{name}.weight"] = drawn(*shape)
        if arguments["bias"]:
            state[f"{name}.bias"] = drawn(d)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def authors_logits(state, arguments, tokens_BT):
    """The release's forward pass by its equations, split by split (training/model.py, training/kraken.py)."""
    heads, splits = arguments["n_heads_in_split"], arguments["n_head"] // arguments["n_heads_in_split"]

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5)

    def attention(x, name):
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(x, f"{name}.attn.c_attn").chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return linear(y, f"{name}.attn.c_proj")

    def mlp(x, name):
        return linear(F.gelu(linear(x, f"{name}.mlp.c_fc"), approximate="tanh"), f"{name}.mlp.c_proj")

    x = state["transformer.wte.weight"][tokens_BT] + state["transformer.wpe.weight"][: tokens_BT.shape[1]]
    streams = [x] * splits
    for layer in range(arguments["n_layer"]):
        new = []
        for split in range(splits):
            name = f"transformer.h.{split}.{layer}"
            h = streams[split] + attention(norm(streams[split], f"{name}.ln_1"), name)
            others = sum(streams[other] for other in range(splits) if other != split) if layer else 0
            new.append(h + mlp(norm(h + others, f"{name}.ln_2"), name))
        streams = new
    y = norm(linear(torch.cat(streams, -1), "transformer.conjunction"), "transformer.ln_f")
    return y @ state["lm_head.weight"].T


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_authors_checkpoint_gives_the_authors_logits(bias, compiled, tmp_path):
    arguments = ARGUMENTS | {"bias": bias}
    state = authors_state(arguments)
    prefix = "_orig_mod." if compiled else ""
    saved = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"model": saved, "optimizer": {}, "model_args": arguments, "iter_num": 5}, tmp_path / "ckpt.pt")
    import_authors(tmp_path / "ckpt.pt", tmp_path / "model")
    tokens_BT = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(1))
    logits = models.load_model(tmp_path / "model")(tokens_BT)
    torch.testing.assert_close(logits, authors_logits(state, arguments, tokens_BT), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": {}, "model_args": Evil()}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=r"ckpt\.pt: expected a checkpoint of tensors alone"):
        import_authors(tmp_path / "ckpt.pt", tmp_path / "model")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"plain\.pt: expected a checkpoint of tensors alone"):
        import_authors(tmp_path / "plain.pt", tmp_path / "model")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": {}}, "expected the tensor transformer.wte.weight"),
        ({"model_args": {"n_layer": 3}}, "expected model_args.n_head"),
        ({"model_args": 3}, "expected model_args.n_layer, found none"),
        ({"model": 3}, "expected model to be tensors by name"),
        (
            {"model_args": ARGUMENTS | {"n_heads_in_split": 0}},
            r"expected model_args.n_heads_in_split to divide n_head \(4\), found 0",
        ),
        (
            {"model_args": ARGUMENTS | {"n_layer": 2}},
            r"expected no tensor that its configuration does not know, found transformer\.h\.0\.2\.attn.* and 11 more",
        ),
        (
            {"model_args": ARGUMENTS | {"n_embd": 24}},
            r"expected embedding.tokens of shape \(96, 24\).*found \(96, 20\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_itself_names_both_sides(change, line, tmp_path):
    torch.save({"model": authors_state(ARGUMENTS), "model_args": ARGUMENTS} | change, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=line):
        import_authors(tmp_path / "ckpt.pt", tmp_path / "model")


def gpt2_folder(path, **changes):
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=90, n_positions=32, **changes)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(path)
    return model


def test_hugging_faces_gpt2_gives_its_logits(tmp_path):
    model = gpt2_folder(tmp_path / "hf")
    import_gpt2(str(tmp_path / "hf"), tmp_path / "model")
    imported = models.load_model(tmp_path / "model")
    tokens_BT = torch.randint(90, (2, 9))
    with torch.no_grad():
        expected, logits = model(tokens_BT).logits, imported(tokens_BT)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_another_architecture_is_refused_by_name(tmp_path):
    gpt2_folder(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(InputError, match="expected model_type gpt2, found 'llama'"):
        import_gpt2(str(tmp_path / "hf"), tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"activation_function": "gelu"},
            "expected activation_function 'gelu_new' or 'gelu_pytorch_tanh', .* found 'gelu'",
        ),
        ({"layer_norm_epsilon": 1e-6}, "expected layer_norm_epsilon 1e-05, .* found 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "expected scale_attn_by_inverse_layer_idx False"),
        ({"n_layer": "2"}, r"config\.json: n_layer: expected a whole number"),
        ({"n_inner": 32}, "expected n_inner None or 64, .* found 32"),
        ({"n_layer": 1}, r"expected no tensor that its configuration does not know, found h\.1\.attn"),
    ],
)
def test_a_gpt2_with_another_forward_pass_is_refused_by_the_key(change, line, tmp_path):
    gpt2_folder(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=line):
        import_gpt2(str(tmp_path / "hf"), tmp_path / "model")


def test_the_masks_that_older_files_keep_among_the_weights_are_left_out(tmp_path):
    model = gpt2_folder(tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32).tril() for layer in range(2)}
    save_file({name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()} | masks, path)
    import_gpt2(str(tmp_path / "hf"), tmp_path / "model")
    tokens_BT = torch.randint(90, (2, 9))
    with torch.no_grad():
        expected, logits = model(tokens_BT).logits, models.load_model(tmp_path / "model")(tokens_BT)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_an_untied_gpt2_keeps_its_own_head(tmp_path):
    model = gpt2_folder(tmp_path / "hf", tie_word_embeddings=False)
    import_gpt2(str(tmp_path / "hf"), tmp_path / "model")
    tokens_BT = torch.randint(90, (2, 9))
    with torch.no_grad():
        expected, logits = model(tokens_BT).logits, models.load_model(tmp_path / "model")(tokens_BT)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def tokenizer_file(path, merges):
    letters = ["a", "b", "c", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": merges}}))
    return path


def test_weights_come_with_their_own_tokenizer_and_refuse_another(tmp_path):
    gpt2_folder(tmp_path / "hf")
    tokenizer_file(tmp_path / "hf" / "tokenizer.json", [["a", "b"]])
    same = tokenizer_file(tmp_path / "same.json", [["a", "b"]])
    other = tokenizer_file(tmp_path / "other.json", [["a", "c"]])
    import_gpt2(str(tmp_path / "hf"), tmp_path / "model", same)
    with pytest.raises(InputError, match=r"expected the vocabulary and merges of .*other\.json, found others"):
        import_gpt2(str(tmp_path / "hf"), tmp_path / "other", other)
    import_model(tmp_path / "model", tmp_path / "again", same)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_what_is_known_of_a_models_training_comes_with_it(tmp_path):
    gpt2_folder(tmp_path / "hf")
    import_gpt2(str(tmp_path / "hf"), tmp_path / "model")
    path = tmp_path / "model" / "metrics.json"
    known = {"seed": 3, "steps": 9, "tokens_seen": 4096, "recipe": {"steps": 9}, "tokens": {"data": "stories"}}
    path.write_text(json.dumps(known | {"curve": [{"step": 0}], "timings": {"seconds": 5.0}}))
    import_model(tmp_path / "model", tmp_path / "again")
    found = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert found.items() >= known.items()
    assert (found["source"], found["curve"], found["timings"]) == ("the model folder model", [], {"seconds": 0.0})
    import_model(tmp_path / "again", tmp_path / "third")
    third = json.loads((tmp_path / "third" / "metrics.json").read_text())
    assert third["source"] == "the model folder again, made from the model folder model"
    path.unlink()
    import_model(tmp_path / "model", tmp_path / "once-more")
    assert json.loads((tmp_path / "once-more" / "metrics.json").read_text())["seed"] == ""
