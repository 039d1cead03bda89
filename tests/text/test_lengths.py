import numpy as np

from krakenlm.text import lengths


def test_lengths_are_summed_up_wherever_they_are_cut():
    drawn = np.random.default_rng(0).geometric(0.01, 5000)
    whole, parts = lengths.Lengths(), lengths.Lengths()
    whole.add(drawn)
    for part in np.split(drawn, [1, 1, 700]):
        parts.add(part)
    summary = whole.summary()
    assert parts.summary() == summary
    assert summary["mean"] == drawn.mean()
    assert (summary["shortest"], summary["longest"]) == (drawn.min(), drawn.max())
    assert summary["quantiles"]["0.5"] == np.quantile(drawn, 0.5, method="inverted_cdf")
    assert summary["histogram"]["64"] == ((drawn >= 64) & (drawn < 128)).sum()
    assert sum(summary["histogram"].values()) == 5000


def test_the_longest_documents_are_counted_together(monkeypatch):
    monkeypatch.setattr(lengths, "LONGEST", 8)
    counted = lengths.Lengths()
    counted.add(np.array([1, 8, 9, 1000]))
    assert counted.summary()["histogram"] == {"1": 1, "8": 3}
    assert counted.summary()["longest"] == 1000


def test_no_documents_have_no_lengths():
    assert lengths.Lengths().summary()["mean"] is None
