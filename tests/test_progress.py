from krakenlm import progress
from krakenlm.progress import Progress, duration


def test_a_line_every_few_seconds_says_how_much_is_done_and_how_long_it_will_take(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 6.0, 8.0, 20.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    shown = Progress("perplexity", 4000, "windows")
    for _ in range(4):
        shown.add(1000)
    assert capsys.readouterr().err == "perplexity: 2,000 of 4,000 windows, 6 s left\n"


def test_a_duration_is_told_in_its_two_largest_units():
    assert [duration(seconds) for seconds in (12.4, 200, 7500, 273600)] == [
        "12 s",
        "3 min 20 s",
        "2 h 5 min",
        "3 d 4 h",
    ]
