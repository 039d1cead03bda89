"""Against lm-eval's own Hugging Face model: the same random weights, the same examples."""

import shutil

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate

from krakenlm.evaluation import official, superglue
from krakenlm.evaluation.lm import KrakenLM
from krakenlm.models.importing import import_gpt2
from krakenlm.text.embedded import write_tasks

pytest.importorskip("accelerate", reason="lm-eval's Hugging Face model needs accelerate: pip install -e '.[compare]'")


@pytest.fixture(scope="module")
def pair(tokenizer, tmp_path_factory):
    """(lm-eval's Hugging Face model, this project's) on one random GPT-2 with a block of 512 tokens."""
    from lm_eval.models.huggingface import HFLM
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    end = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=300, n_positions=512, n_embd=48, n_layer=2, n_head=4, initializer_range=0.3, **end)
    GPT2LMHeadModel(config).save_pretrained(folder)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), **special).save_pretrained(folder)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    import_gpt2(str(folder), folder / "ours")
    return theirs, KrakenLM(folder / "ours", device="cpu")


@pytest.fixture(scope="module", params=["embedded", "official"])
def tasks(request, tmp_path_factory):
    """A folder of tasks; the official download's examples have contexts longer than the block."""
    folder = tmp_path_factory.mktemp("tasks")
    if request.param == "embedded":
        write_tasks(folder, seed=1, examples=12)
        return folder
    official.convert(request.getfixturevalue("download"), "train", folder)
    for path in folder.glob("*.jsonl"):
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:8]), encoding="utf-8")
    return folder


def test_scores_are_equal_to_the_digit_and_loglikelihoods_to_a_thousandth(pair, tasks):
    theirs, ours = (evaluate(model, superglue.load_tasks(tasks), bootstrap_iters=1, log_samples=True) for model in pair)
    for task in superglue.TASKS.values():
        name = task.lm_eval_name
        assert theirs["results"][name] == ours["results"][name]
        for one, other in zip(theirs["samples"][name], ours["samples"][name], strict=True):
            for (their_nats, their_greedy), (nats, greedy) in zip(
                one["filtered_resps"], other["filtered_resps"], strict=True
            ):
                assert float(nats) == pytest.approx(float(their_nats), abs=1e-3)
                assert greedy == their_greedy


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=args, idx=number) for number, args in enumerate(arguments)]


def test_contexts_longer_than_the_block_are_cut_as_lm_eval_cuts_them(pair):
    theirs, ours = pair
    # No sentence twice: lm-eval's Hugging Face model takes equal inputs of unequal continuations for one request.
    text = [f"Ann bought hat {number}. " for number in range(120)]
    arguments = [("".join(text[:count]), "Ben lost a kite.") for count in range(1, 120, 8)]
    lengths = [len(ours.tok_encode(context)) for context, _ in arguments]
    assert min(lengths) < ours.max_length < max(lengths)
    for kind in ("loglikelihood", "loglikelihood_rolling"):
        requests = instances(kind, arguments if kind == "loglikelihood" else [(context,) for context, _ in arguments])
        found, expected = (getattr(model, kind)(requests, disable_tqdm=True) for model in (ours, theirs))
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-3)


def test_equal_texts_with_other_cuts_and_requests_that_come_twice_are_scored_as_lm_eval_scores_each_alone(pair):
    theirs, ours = pair
    words = ["Ann", "bought", "a", "hat", "at", "the", "market", "because", "Ben", "lost", "a", "kite."]
    arguments = [(" ".join(words[:cut]), " " + " ".join(words[cut:])) for cut in range(1, len(words))] * 2
    found = ours.loglikelihood(instances("loglikelihood", arguments), disable_tqdm=True)
    for request, one in zip(arguments, found, strict=True):
        # One at a time, for the reason above.
        (other,) = theirs.loglikelihood(instances("loglikelihood", [request]), disable_tqdm=True)
        assert one == pytest.approx(other, abs=1e-3)


def test_generated_texts_are_equal(pair):
    theirs, ours = pair
    settings = {"until": ["."], "max_gen_toks": 8, "do_sample": False}
    contexts = ["Ann bought", "Ben lost a kite. He was", "Ann bought a hat. " * 99]
    requests = instances("generate_until", [(context, settings) for context in contexts])
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)
