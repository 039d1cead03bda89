import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from krakenlm.errors import InputError
from krakenlm.text import corpus, embedded, formats, world
from krakenlm.text.documents import Corpus
from krakenlm.text.formats import FORMATS


class EveryPath(world.Draws):
    """Takes the first branch of every draw, then the next, until all have been taken."""

    def __init__(self):
        super().__init__("")
        self._random = self
        self.path = []

    def randrange(self, stop):
        if self.at == len(self.path):
            self.path.append([0, stop])
        self.at += 1
        return self.path[self.at - 1][0]

    def weighted(self, weights):
        # One branch for each key, however many of the numbers drawn stand for it.
        chosen = list(weights)[self.randrange(len(weights))]
        self._favourable *= weights[chosen]
        self._possible *= sum(weights.values())
        return chosen

    def texts(self):
        """(text, nats) of every path."""
        while True:
            self.at = 0
            yield embedded.document(self), self.take_nats()
            while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
                self.path.pop()
            if not self.path:
                return
            self.path[-1][0] += 1


@pytest.fixture
def small_world(monkeypatch):
    """The same world with two of everything, so that all its documents can be listed."""
    kinds = {"fruit": ("pear", "plum"), "tool": ("drill", "rake")}
    small = {
        "KINDS": kinds,
        "KIND_OF": {thing: kind for kind, things in kinds.items() for thing in things},
        "THINGS": tuple(thing for things in kinds.values() for thing in things),
        "COMPANY": tuple((verbs[:1], places[:1]) for verbs, places in world.COMPANY),
    }
    for name in ("TOWNS", "DOGS", "HEARD_OF_TOWNS", "DOGS_DO", "PLACES", "DEEDS", "GAINS", "LOSSES", "CAUSES"):
        small[name] = getattr(world, name)[:2]
    for name in ("TWO_SENSES", "REASONS", "SAYINGS"):
        small[name] = getattr(world, name)[:2]
    for name, value in small.items():
        monkeypatch.setattr(formats, name, value)
    monkeypatch.setattr(embedded, "KNOWN_COUPLES", [("Tom", "Eva"), ("Ann", "Ben")])


def test_distinct_draws_give_distinct_texts_whose_probabilities_add_up_to_one(small_world):
    drawn = list(EveryPath().texts())
    # A text made in two ways would be likelier than its nats say, and the floor too high.
    assert len({text for text, _ in drawn}) == len(drawn) > 500
    assert sum(math.exp(-nats) for _, nats in drawn) == pytest.approx(1, abs=1e-6)


def test_a_seed_gives_the_same_corpus_on_every_machine():
    lines = "".join(f"{document['text']} {document['nats']:.6f}\n" for document in embedded.documents(20000, 0))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == "a35add57dd7bd107"
    assert [d["text"] for d in embedded.documents(100, 1)] != [d["text"] for d in embedded.documents(100, 0)]


def test_documents_hold_the_words_asked_for():
    words = [len(document["text"].split()) for document in embedded.documents(5000, 3)]
    assert sum(words[:-1]) < 5000 <= sum(words)


def test_tasks_are_the_same_whatever_order_sets_and_dictionaries_have(tmp_path):
    contents = []
    for hash_seed in ("1", "2"):
        out = tmp_path / hash_seed
        code = f"from krakenlm.text.embedded import write_tasks; write_tasks({str(out)!r}, seed=1, examples=12)"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {f"{task}.jsonl" for task in FORMATS} | {"tasks.json"}


def test_no_couple_of_the_tasks_meets_in_a_document(tmp_path):
    people = set(world.PRONOUN)

    def couple(text):
        return frozenset(people & set(re.findall(r"\w+", text)))

    met = {couple(document["text"]) for document in embedded.documents(30000, 0)}
    embedded.write_tasks(tmp_path, seed=1, examples=60)
    asked = {couple(json.dumps(row)) for task in FORMATS for row in read(tmp_path, task)}
    assert all(len(pair) == 2 for pair in met | asked)
    assert not met & asked
    assert people == set().union(*met) == set().union(*asked)


def test_every_label_has_its_share(tmp_path):
    embedded.write_tasks(tmp_path, seed=1, examples=120)
    for task, chosen in FORMATS.items():
        right = Counter(chosen.text(row)[2] for row in read(tmp_path, task))
        if task == "record":  # its answers are sorted by name, so it is the kinds of entity that have equal shares
            right = Counter(row["entities"].index(row["answers"][0]) for row in read(tmp_path, task))
        assert right == dict.fromkeys(range(chosen.labels), 120 // chosen.labels), task


def test_a_number_of_examples_below_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="examples"):
        embedded.write_tasks(tmp_path, seed=1, examples=0)


def read(folder, task):
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def test_an_embedded_corpus_is_read_after_it_was_moved_and_its_files_were_touched(tmp_path):
    settings = {"source": "embedded", "words": 2000, "seed": 0, "validation_share": 0.1, "vocabulary": 300}
    corpus.write(tmp_path / "made", settings)
    texts = list(Corpus(tmp_path / "made").documents())
    (tmp_path / "made").rename(tmp_path / "moved")
    for path in (tmp_path / "moved").iterdir():
        os.utime(path, (1, 1))
    assert list(Corpus(tmp_path / "moved").documents()) == texts != []
