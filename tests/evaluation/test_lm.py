import json
import shutil

import pytest
import torch
from lm_eval._cli.run import Run
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from krakenlm import models
from krakenlm.cli import app
from krakenlm.cli.evaluation import with_model
from krakenlm.errors import InputError
from krakenlm.evaluation import lm
from krakenlm.evaluation.lm import KrakenLM
from krakenlm.inference.collectives import run_threads

PAIRS = [
    ("Ann bought a hat at the market.\nQuestion: did Ann buy a hat?\nAnswer:", " yes"),
    ("Ann bought a hat at the market.\nQuestion: did Ann buy a hat?\nAnswer:", " no"),
    ("Ben lost a kite. ", "He was sad."),
    ("", "Tom thanked him"),
    ("Passage: Tom", " thanked *him* for the bike because he was glad."),
    ("The market is long. " * 12 + "Ben bought", " a kite."),
]


@pytest.fixture(scope="module")
def language_model(model):
    return KrakenLM(model, device="cpu")


def instances(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=args, idx=number) for number, args in enumerate(arguments)]


def direct(language_model, context_tokens, continuation_tokens):
    """Log-probability token by token, from one forward pass for each."""
    tokens, total, greedy = list(context_tokens), 0.0, True
    for token in continuation_tokens:
        with torch.inference_mode():
            logits_V = language_model.module(torch.tensor([tokens[-language_model.max_length :]]))[0, -1].double()
        total += torch.log_softmax(logits_V, -1)[token].item()
        greedy = greedy and logits_V.argmax().item() == token
        tokens.append(token)
    return total, greedy


def encode(language_model, text):
    return language_model.tokenizer.encode(text).ids


def test_lm_eval_finds_the_model_by_name():
    assert get_model("krakenlm") is KrakenLM


def test_loglikelihood_is_that_of_one_forward_pass_for_each_token(language_model):
    found = language_model.loglikelihood(instances("loglikelihood", *PAIRS[:5]), disable_tqdm=True)
    for (context, continuation), (nats, greedy) in zip(PAIRS[:5], found, strict=True):
        kept = context.rstrip()
        whole = encode(language_model, context + continuation)
        cut = len(encode(language_model, kept))
        before = whole[:cut] or [language_model.end]
        expected, expected_greedy = direct(language_model, before, whole[cut:])
        assert nats == pytest.approx(expected, rel=1e-5)
        assert greedy == expected_greedy


def test_ranks_that_share_the_requests_all_get_what_one_gets(model, language_model, monkeypatch):
    monkeypatch.setitem(lm.TOKENS_PER_PACK, "cpu", 40)
    expected = language_model.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    computed = []

    def on_rank(comm):
        shared = KrakenLM(model, device="cpu", comm=comm)
        monkeypatch.setattr(
            shared, "score", lambda *given: [computed.append(comm.rank), KrakenLM.score(shared, *given)]
        )
        return shared.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)

    assert run_threads(3, on_rank) == [expected] * 3
    assert set(computed) == {0, 1, 2}


def test_a_context_longer_than_the_model_loses_its_beginning(language_model):
    context, continuation = PAIRS[5]
    ((nats, _),) = language_model.loglikelihood(instances("loglikelihood", PAIRS[5]), disable_tqdm=True)
    whole, cut = encode(language_model, context + continuation), len(encode(language_model, context))
    assert len(whole) > language_model.max_length
    # One window holds all the continuation: the context does not slide while it is read.
    window = whole[-language_model.max_length - 1 :]
    with torch.inference_mode():
        log_TV = torch.log_softmax(language_model.module(torch.tensor([window[:-1]]))[0].double(), -1)
    predicted = len(whole) - cut
    expected = sum(log_TV[place - 1, window[place]].item() for place in range(len(window) - predicted, len(window)))
    assert nats == pytest.approx(expected, rel=1e-5)


def test_results_do_not_depend_on_batches_or_order(language_model, monkeypatch):
    together = language_model.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    monkeypatch.setitem(lm.TOKENS_PER_PACK, "cpu", 1)
    alone = language_model.loglikelihood(instances("loglikelihood", *reversed(PAIRS)), disable_tqdm=True)[::-1]
    assert [nats for nats, _ in alone] == pytest.approx([nats for nats, _ in together], rel=1e-5)
    assert [greedy for _, greedy in alone] == [greedy for _, greedy in together]


def test_a_request_that_comes_twice_is_answered_twice(language_model):
    once = language_model.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    twice = language_model.loglikelihood(instances("loglikelihood", *PAIRS, *PAIRS), disable_tqdm=True)
    assert twice == [*once, *once]
    texts = [(context,) for context, _ in PAIRS]
    once, twice = (
        language_model.loglikelihood_rolling(instances("loglikelihood_rolling", *given)) for given in (texts, texts * 2)
    )
    assert twice == [*once, *once]


def test_one_text_is_scored_from_wherever_it_is_cut(language_model):
    words = ["Ann", "bought", "a", "hat", "at", "the", "market."]
    pairs = [(" ".join(words[:cut]), " " + " ".join(words[cut:])) for cut in range(1, len(words))]
    found = language_model.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (nats, greedy) in zip(pairs, found, strict=True):
        cut = len(encode(language_model, context))
        whole = encode(language_model, context + continuation)
        expected, expected_greedy = direct(language_model, whole[:cut], whole[cut:])
        assert (nats, greedy) == (pytest.approx(expected, rel=1e-5), expected_greedy)


def test_a_continuation_longer_than_the_model_is_refused(language_model):
    with pytest.raises(InputError, match="at most 48 tokens"):
        language_model.loglikelihood(instances("loglikelihood", ("Ann", " kite" * 60)), disable_tqdm=True)


@pytest.mark.parametrize(
    ("context", "continuation", "message"),
    [
        (" \n ", " yes", r"context: expected at least one token, found none in ' \\n ' of the pair .* and ' yes'"),
        ("Ann bought", "", "continuation: expected at least one token, found none in '' of the pair 'Ann bought'"),
        ("", "", "continuation: expected at least one token"),
    ],
)
def test_a_text_without_tokens_is_refused(language_model, context, continuation, message):
    with pytest.raises(InputError, match=message):
        language_model.loglikelihood(instances("loglikelihood", PAIRS[0], (context, continuation)), disable_tqdm=True)


def test_rolling_loglikelihood_predicts_every_token_once(language_model):
    text = "The market is long. Ben bought a kite. " * 8
    tokens, block = encode(language_model, text), language_model.max_length
    assert 2 * block < len(tokens) < 8 * block
    (found,) = language_model.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    whole, expected = [language_model.end, *tokens], 0.0
    for first in range(0, len(tokens), block):
        last = min(first + block, len(tokens))
        # Inputs end before the last predicted token and are a full block wherever that is possible.
        inputs = whole[max(0, last - block) : last]
        with torch.inference_mode():
            log_TV = torch.log_softmax(language_model.module(torch.tensor([inputs]))[0].double(), -1)
        expected += sum(log_TV[place - last, tokens[place]].item() for place in range(first, last))
    assert found == pytest.approx(expected, rel=1e-5)


def greedy_text(language_model, context, count):
    tokens = encode(language_model, context)
    start = len(tokens)
    for _ in range(count):
        with torch.inference_mode():
            tokens.append(language_model.module(torch.tensor([tokens]))[0, -1].argmax().item())
    return language_model.tokenizer.decode(tokens[start:])


def test_generation_is_greedy_and_ends_at_the_limit_or_before_a_stop(language_model):
    contexts = ["Ann bought", "Ben lost a kite. He"]
    limit = {"max_gen_toks": 6}
    whole = language_model.generate_until(instances("generate_until", *[(context, limit) for context in contexts]))
    assert whole == [greedy_text(language_model, context, 6) for context in contexts]
    stop = whole[0][len(whole[0]) // 2]
    (cut,) = language_model.generate_until(instances("generate_until", (contexts[0], limit | {"until": [stop]})))
    assert cut == whole[0].split(stop)[0]


@pytest.mark.parametrize("name", ["max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_the_limit_of_a_generation_has_all_names_that_lm_eval_has_for_it(language_model, name):
    (text,) = language_model.generate_until(instances("generate_until", ("Ann bought", {name: 3, "num_beams": 1})))
    assert text == greedy_text(language_model, "Ann bought", 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "found num_beams=4"),
        ({"repetition_penalty": 1.2}, r"found repetition_penalty=1\.2"),
        ({"max_length": 8}, "found max_length=8"),
        ({"max_new_tokens": "many"}, "expected numbers for temperature and max_gen_toks"),
    ],
)
def test_an_option_of_generation_that_the_model_has_not_is_refused_by_name(language_model, settings, message):
    with pytest.raises(InputError, match=f"gen_kwargs: .*{message}"):
        language_model.generate_until(instances("generate_until", ("Ann", settings)))


def test_generation_after_a_long_context_stays_within_the_block(language_model):
    (text,) = language_model.generate_until(
        instances("generate_until", (PAIRS[5][0], {"until": [], "max_gen_toks": 9}))
    )
    assert text


def test_generation_side_by_side_is_that_of_each_context_alone(language_model):
    contexts = ["Ann bought", "Ben lost a kite. He was sad because", PAIRS[5][0], ""]
    requests = [(context, {"max_gen_toks": 5 + number, "until": ["."]}) for number, context in enumerate(contexts)]
    together = language_model.generate_until(instances("generate_until", *requests))
    alone = [language_model.generate_until(instances("generate_until", request))[0] for request in requests]
    assert together == alone


def test_sampling_draws_the_same_texts_again_and_others_than_the_likeliest(language_model):
    settings = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "until": []}
    requests = instances("generate_until", *[(f"Ann {number}", settings) for number in range(4)])
    drawn = language_model.generate_until(requests)
    assert drawn == language_model.generate_until(requests)
    likeliest = instances(
        "generate_until", *[(f"Ann {number}", settings | {"do_sample": False}) for number in range(4)]
    )
    assert drawn != language_model.generate_until(likeliest)


def test_more_new_tokens_than_the_block_holds_are_refused(language_model):
    with pytest.raises(InputError, match="max_gen_toks: expected 1 to 47"):
        language_model.generate_until(instances("generate_until", ("Ann", {"max_gen_toks": 48})))


def test_a_tokenizer_of_another_vocabulary_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    fields = models.load_config(folder).to_dict()
    for vocab_size in (256, 321, 448, 2048):
        models.save_model(models.build(fields | {"vocab_size": vocab_size}), folder)
        with pytest.raises(InputError, match=f"expected a tokenizer for the model's vocab_size, {vocab_size}"):
            KrakenLM(folder, device="cpu")


TASKS = {
    "choose": "output_type: multiple_choice\ndoc_to_choice: ['yes', 'no']\ndoc_to_target: label\n"
    "metric_list: [{metric: acc}]",
    "roll": "output_type: loglikelihood_rolling\ndoc_to_target: '{{question}}'\nmetric_list: [{metric: bits_per_byte}]",
    "write": "output_type: generate_until\ndoc_to_target: answer\ngeneration_kwargs: {until: ['.'], max_gen_toks: 4}\n"
    "metric_list: [{metric: exact_match}]",
}


def test_lm_evals_own_command_line_scores_a_model_folder_on_any_kind_of_task(model, tmp_path, monkeypatch):
    rows = [{"question": f"did Ann buy hat {number}", "answer": "yes", "label": number % 2} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, settings in TASKS.items():
        source = (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\ntest_split: test"
        )
        prompt = "" if name == "roll" else "{{question}}?"
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{source}\ndoc_to_text: '{prompt}'\n{settings}\n")
    monkeypatch.setattr("sys.argv", ["krakenlm"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    app(
        [
            *("lm-eval", "--model_args", f"path={model}", "--tasks", ",".join(TASKS)),
            *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
        ],
        standalone_mode=False,
    )
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())["results"]
    assert 0 <= results["choose"]["acc,none"] <= 1
    assert results["roll"]["bits_per_byte,none"] > 0
    assert results["write"]["exact_match,none"] == 0


@pytest.mark.parametrize("arguments", ["--model_args path=x", "--model_args=path=x", "-a path=x", "-apath=x"])
@pytest.mark.parametrize("model", ["", "--model hf", "--model=hf", "-M hf", "-Mhf"])
def test_lm_evals_command_line_has_this_projects_model_unless_another_is_named(monkeypatch, arguments, model):
    parsed = []
    monkeypatch.setattr(Run, "_execute", staticmethod(parsed.append))
    monkeypatch.setattr("sys.argv", ["krakenlm"])
    app(["lm-eval", *arguments.split(), *model.split(), "--tasks", "boolq"], standalone_mode=False)
    assert (parsed[0].model, parsed[0].model_args) == ("hf" if model else "krakenlm", {"path": "x"})


def test_lm_evals_other_commands_are_left_as_they_are():
    assert with_model(["ls", "tasks"]) == ["ls", "tasks"]
    assert with_model(["run", "--config", "mine.yaml"]) == ["run", "--config", "mine.yaml"]
