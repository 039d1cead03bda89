"""What transformers loads from an exported folder is the model that was exported."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import dynamic_module_utils

from krakenlm import cli, models
from krakenlm.errors import InputError
from krakenlm.export.huggingface import export_huggingface
from krakenlm.inference.generate import generate
from krakenlm.models.importing import import_gpt2
from krakenlm.text.corpus import Found, describe
from krakenlm.text.tokenizer import load_tokenizer, train_tokenizer

VOCABULARY = 270
SMALL = {"n_layer": 3, "n_head": 4, "width": 24, "vocab_size": 320, "block_size": 32}
SIZES = {
    "standard": {"architecture": "standard", **SMALL},
    "parallel": {"architecture": "parallel", **SMALL},
    "ladder": {"architecture": "ladder", **SMALL},
    "kraken": {"architecture": "kraken", "degree": 2, **SMALL},
    "kraken-odd": {"architecture": "kraken", "degree": 3, "ffn_expansion": 3, **SMALL, "n_head": 9, "width": 21},
}
for name in ("standard", "parallel", "ladder", "kraken"):
    SIZES[f"{name}-bias-untied"] = {**SIZES[name], "bias": True, "tied": False}
ARCHITECTURES = list(models.ARCHITECTURES)
PROMPTS = torch.randint(1, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
# Greedy and without an end, so that every length is known.
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "suppress_tokens": None}


@pytest.fixture(scope="session", autouse=True)
def code_of_exported_models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory):
    """A BPE of `VOCABULARY` tokens."""
    corpus = tmp_path_factory.mktemp("corpus")
    (corpus / "train.jsonl").write_text(json.dumps({"text": "naïve café, 10 €, 火, the end, the other end"}) + "\n")
    describe(corpus, Found([corpus / "train.jsonl"], held_out=[corpus / "train.jsonl"]), {"source": "embedded"})
    train_tokenizer(corpus, VOCABULARY, corpus / "tokenizer.json")
    return corpus / "tokenizer.json"


def drawn(sizes):
    """A model whose weights are large enough that every mistake shows."""
    torch.manual_seed(0)
    module = models.build(sizes)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return module.eval()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer_json):
    """name -> a model folder; `gpt2` is imported from Hugging Face's."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "model"
            if name == "gpt2":
                source = made[name].with_name("gpt2")
                config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=VOCABULARY, n_positions=32)
                transformers.GPT2LMHeadModel(config).eval().save_pretrained(source)
                import_gpt2(str(source), made[name], tokenizer_json)
            else:
                models.save_model(drawn(SIZES[name]), made[name])
                (made[name] / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
        return made[name]

    return make


@pytest.fixture(scope="session")
def exported(model_folder):
    """name -> the exported folder of the model of that name."""

    def export(name):
        folder = model_folder(name).with_name(f"exported-{name}")
        if not folder.exists():
            export_huggingface(model_folder(name), folder)
        return folder

    return export


@pytest.fixture(scope="session")
def load(exported):
    """name -> the model of that name as transformers loads it."""
    loaded = {}

    def from_pretrained(name):
        if name not in loaded:
            loaded[name] = transformers.AutoModelForCausalLM.from_pretrained(exported(name), trust_remote_code=True)
        return loaded[name]

    return from_pretrained


@pytest.mark.parametrize("name", [*SIZES, "gpt2"])
@torch.no_grad()
def test_logits_are_those_of_the_model_folder(name, model_folder, load):
    expected = models.load_model(model_folder(name))(PROMPTS)
    torch.testing.assert_close(load(name)(PROMPTS).logits, expected, rtol=0, atol=1e-5)
    last = load(name)(PROMPTS, use_cache=False, logits_to_keep=2).logits
    torch.testing.assert_close(last, expected[:, -2:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_imported_gpt2_comes_out_as_it_went_in(model_folder, load):
    source = transformers.GPT2LMHeadModel.from_pretrained(model_folder("gpt2").with_name("gpt2"))
    torch.testing.assert_close(load("gpt2")(PROMPTS).logits, source(PROMPTS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*SIZES, "gpt2"])
@torch.inference_mode()
def test_greedy_generation_is_krakenlms_with_and_without_a_cache(name, model_folder, load):
    module = models.load_model(model_folder(name))
    expected = torch.stack(list(generate(module, PROMPTS, 12)), dim=1)
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(load(name).generate(PROMPTS, **GREEDY, **settings)[:, 7:], expected), settings


@pytest.mark.parametrize("name", ["standard", "kraken-odd"])
def test_beam_search_reorders_the_cache_of_every_split(name, load):
    found = [load(name).generate(PROMPTS, **GREEDY, num_beams=4, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(name, load):
    padded, mask = F.pad(PROMPTS, (5, 0)), F.pad(torch.ones_like(PROMPTS), (5, 0))
    padded[1], mask[1] = torch.arange(20, 32), 1
    model = load(name)
    logits = model(padded, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, 5:], model(PROMPTS[:1]).logits[0], rtol=1e-4, atol=1e-4)
    some = torch.tensor([5, 9])
    torch.testing.assert_close(model(padded, attention_mask=mask, logits_to_keep=some).logits, logits[:, some])
    together = model.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(together[0, 12:], model.generate(PROMPTS[:1], **GREEDY)[0, 7:])
    assert torch.equal(together[1, 12:], model.generate(padded[1:], **GREEDY)[0, 12:])


@torch.no_grad()
def test_padding_on_the_right_is_scored_and_not_continued(load):
    padded, mask = F.pad(PROMPTS, (0, 5)), F.pad(torch.ones_like(PROMPTS), (0, 5))
    logits = load("kraken")(padded, attention_mask=mask).logits
    torch.testing.assert_close(logits[:, :7], load("kraken")(PROMPTS).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match=r"attention_mask: expected prompts that end with a token.*pad on the left"):
        load("kraken").generate(padded, attention_mask=mask, **GREEDY)


def test_too_long_a_sequence_and_a_mask_that_does_not_fit_are_refused(load):
    with pytest.raises(Exception, match=r"input_ids: expected at most block_size \(32\) tokens in a row.*found 33"):
        load("kraken").generate(PROMPTS, **GREEDY | {"max_new_tokens": 27})
    with pytest.raises(Exception, match=r"attention_mask: expected the shape \(2, 7\).*found \(2, 6\)"):
        load("kraken")(PROMPTS, attention_mask=torch.ones(2, 6))


def test_no_token_is_generated_that_the_tokenizer_does_not_have(model_folder, tokenizer_json, tmp_path):
    module = drawn(SIZES["kraken-bias-untied"])
    with torch.no_grad():
        module.norm.weight.zero_()
        module.norm.bias.fill_(1.0)
        module.embedding.head[VOCABULARY:] = 1.0  # ids of no token, likelier than any other
    models.save_model(module, tmp_path / "model")
    export_huggingface(tmp_path / "model", tmp_path / "out", tokenizer_json)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model(PROMPTS).logits.argmax(-1).min() >= VOCABULARY
    assert model.generate(PROMPTS, max_new_tokens=4, do_sample=False).max() < VOCABULARY


def test_the_loss_is_the_mean_over_predicted_tokens(load):
    output = load("ladder")(PROMPTS, labels=PROMPTS)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), PROMPTS[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in load("ladder").parameters())


@pytest.mark.parametrize("name", ["standard", "kraken", "kraken-bias-untied"])
@torch.no_grad()
def test_saved_by_transformers_it_loads_again(name, load, tmp_path):
    load(name).save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(PROMPTS).logits, load(name)(PROMPTS).logits)


def test_a_model_without_weights_gets_those_that_training_begins_with(load):
    config = load("kraken").config
    torch.manual_seed(3)
    fresh = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    torch.manual_seed(3)
    expected = models.build(SIZES["kraken"]).state_dict()
    for name, tensor in fresh.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_tokenizer_gives_the_same_ids_and_the_text_back(model_folder, exported):
    text = "naïve café, 10 €: 火 \n\t the  end 🙂"
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported("kraken"), trust_remote_code=True)
    ids = load_tokenizer(model_folder("kraken") / "tokenizer.json").encode(text).ids
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    batch = tokenizer(["the end", text], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0
    assert batch["input_ids"][0, 0] == tokenizer.eos_token_id


def test_every_architecture_runs_in_one_process_where_krakenlm_is_not_installed(exported, load, tmp_path):
    script = f"""
import sys
sys.modules["krakenlm"] = None
import torch, transformers
for folder in {[str(exported(name)) for name in ARCHITECTURES]}:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens = model.generate(torch.tensor({PROMPTS.tolist()}), max_new_tokens=12, do_sample=False)
    print(tokens.tolist())
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    expected = [load(name).generate(PROMPTS, max_new_tokens=12, do_sample=False).tolist() for name in ARCHITECTURES]
    assert run.stdout.splitlines() == [str(tokens) for tokens in expected]


def test_the_folder_has_the_code_of_its_own_architecture_alone(exported):
    code = {path.stem for path in exported("ladder").glob("*.py")}
    shared = {"errors", "blocks", "collectives", "modeling_krakenlm", "products"}
    assert code == shared | {"ladder", "standard"}
    assert {path.stem for path in exported("kraken").glob("*.py")} == shared | {"kraken"}


def test_the_command_puts_the_scores_of_that_model_into_the_card(model_folder, tmp_path, monkeypatch):
    model = tmp_path / "results" / "tiny" / "text-1" / "models" / "kraken" / "seed0-abc"
    shutil.copytree(model_folder("kraken"), model)
    rows = ["run,loss,perplexity", "text-1/models/kraken/seed0-abc,0.5,1.65", "text-1/models/ladder/seed0-def,0.7,2.01"]
    (tmp_path / "results" / "perplexity.csv").write_text("\n".join(rows) + "\n")
    command = ["krakenlm", "export", "hf", str(model), str(tmp_path / "out"), "--license", "mit"]
    monkeypatch.setattr(sys, "argv", [*command, "--scores", str(tmp_path / "results")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1.65" in card
    assert "2.01" not in card
    assert "license: mit" in card


def test_what_cannot_be_exported_is_refused(model_folder, tokenizer_json, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match=r"there: expected a folder that does not exist yet, found one"):
        export_huggingface(model_folder("kraken"), tmp_path / "there")
    with pytest.raises(InputError, match=r"config\.json: expected a JSON file, found none"):
        export_huggingface(tmp_path / "there", tmp_path / "out")
    models.save_model(drawn(SIZES["kraken"] | {"vocab_size": VOCABULARY - 1}), tmp_path / "small")
    (tmp_path / "small" / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a tokenizer, found none; .*--tokenizer"):
        export_huggingface(tmp_path / "small", tmp_path / "out")
    with pytest.raises(InputError, match=r"expected at most 269 tokens, the model's vocab_size, found 270"):
        export_huggingface(tmp_path / "small", tmp_path / "out", tokenizer_json)
    assert not (tmp_path / "out").exists()
