"""The section on the text: counts, lengths, duplicates."""

import re


def text_manifest(**changes):
    lengths = {
        "mean": 9.5,
        "shortest": 2,
        "longest": 30,
        "quantiles": {"0.05": 2, "0.25": 4, "0.5": 8, "0.75": 12, "0.95": 24, "0.99": 30},
        "histogram": {"2": 10, "8": 70, "16": 20},
    }
    entry = {"tokens": 950, "documents": 100, "bytes": 3800, "lengths": lengths}
    splits = {"train": entry, "val": entry | {"tokens": 900}}
    return {"data": "stories", "vocabulary": 500, "duplicates": 0.125, "splits": splits} | changes


def test_the_text_has_its_counts_its_lengths_and_its_share_of_duplicates(inputs):
    inputs.json("manifest.json", text_manifest())
    page = inputs.page()
    assert "12.50% of all documents stood" in page
    assert "Tokens of stories" in page
    (section,) = re.findall(r'<section id="text".*?</section>', page, re.DOTALL)
    assert section.count('class="chart"') == 2
    # The empty range from 4 to 7 tokens is there too.
    assert "4 to 7 tokens: 0" in section
    assert "Warning" not in section


def test_tokens_that_are_not_as_many_as_published_are_a_warning_with_both_numbers(inputs):
    inputs.json("manifest.json", text_manifest(published_tokens={"train": 950, "val": 4434897}))
    (warning,) = re.findall(r"Warning: [^<]*", inputs.page())
    assert "validation split has 900 tokens, and 4,434,897 are published" in warning
