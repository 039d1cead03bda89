"""The model card says what is known of a model and leaves out the rest."""

import csv

import pytest

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.export.card import write_card
from krakenlm.files import write_json

SIZES = {"architecture": "kraken", "degree": 2, "n_layer": 3, "n_head": 4, "width": 24}
CONFIG = models.config_from_dict(SIZES | {"vocab_size": 320, "block_size": 32})
METRICS = {
    "seed": 7,
    "tokens_seen": 123456,
    "recipe": {"steps": 600, "learning_rate": 0.002},
    "tokens": {
        "data": "embedded (synthetic)",
        "vocabulary": 300,
        "splits": {"train": {"tokens": 1000, "documents": 20}, "val": {"tokens": 100, "documents": 2}},
    },
}


@pytest.fixture
def card(tmp_path):
    def write(metrics, scores=None, run="", weights_license=None):
        write_json(tmp_path / "metrics.json", metrics)
        write_card(tmp_path, "my-kraken", tmp_path, CONFIG, scores, run, weights_license)
        return (tmp_path / "README.md").read_text()

    return write


def table(path, rows):
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_it_states_sizes_data_recipe_and_license(card):
    text = card(METRICS, weights_license="cc-by-4.0")
    assert "2 splits of width 24" in text
    assert "embedded (synthetic): 1,000 tokens in 20 documents for training, 100 tokens in 2 documents" in text
    assert "The model saw 123,456 tokens." in text
    assert "| `learning_rate` | 0.002 |" in text
    assert "| `seed` | 7 |" in text
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: cc-by-4.0\n")


def test_it_has_the_scores_of_its_own_run_alone(card, tmp_path):
    score = {"data": "embedded (synthetic)", "protocol": "whole", "loss": "0.5856123", "perplexity": "1.796"}
    rows = [score | {"run": "models/mine"}, score | {"run": "models/other", "perplexity": "9.876"}]
    table(tmp_path / "results" / "perplexity.csv", rows)
    task = {"task": "boolq", "metric": "acc", "value": "0.7825", "stderr": "0.02065", "n": "400", "chance": "0.5"}
    table(tmp_path / "results" / "superglue.csv", [task | {"run": "models/mine"}])
    text = card(METRICS, tmp_path / "results", "models/mine")
    assert "| embedded (synthetic) | whole | 0.5856 | 1.796 |" in text
    assert "| boolq | acc | 0.7825 | 0.02065 | 400 | 0.5 |" in text
    assert "9.876" not in text


def test_a_table_without_a_row_of_this_model_is_named(card, tmp_path, capsys):
    score = {"data": "stories", "protocol": "whole", "loss": "0.5", "perplexity": "1.6", "run": "models/other"}
    table(tmp_path / "results" / "perplexity.csv", [score])
    task = {"task": "boolq", "metric": "acc", "value": "0.7", "stderr": "0.02", "n": "400", "chance": "0.5"}
    table(tmp_path / "results" / "superglue.csv", [task | {"run": "models/mine"}])
    card(METRICS, tmp_path / "results", "models/mine")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("perplexity.csv has no row of models/mine: the card goes without")


def test_what_is_unknown_is_left_out(card):
    text = card({"seed": "", "tokens_seen": "", "source": "GPT-2, openai-community/gpt2"})
    elsewhere = "The weights come from elsewhere: GPT-2, openai-community/gpt2."
    documented = "What they were trained on is documented there."
    assert f"{elsewhere} {documented}" in text
    known = card(METRICS | {"source": "GPT-2, openai-community/gpt2"})
    assert elsewhere in known
    assert documented not in known
    for unknown in ("Recipe", "Perplexity", "SuperGLUE", "None", "license:", "saw"):
        assert unknown not in text


def test_results_of_other_models_and_a_license_that_is_none_are_refused(card, tmp_path):
    with pytest.raises(InputError, match=r"expected perplexity\.csv or superglue\.csv, found neither"):
        card(METRICS, tmp_path / "results", "models/mine")
    table(tmp_path / "results" / "perplexity.csv", [{"run": "models/other"}])
    with pytest.raises(InputError, match="expected rows of the run models/mine, found those of models/other"):
        card(METRICS, tmp_path / "results", "models/mine")
    with pytest.raises(InputError, match="weights_license: expected an identifier such as mit"):
        card(METRICS, weights_license="MIT: see below")
