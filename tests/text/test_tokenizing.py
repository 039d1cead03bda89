import json
import multiprocessing
import os
import signal
import subprocess

import numpy as np
import pytest

from krakenlm import cli
from krakenlm.errors import InputError
from krakenlm.text import corpus, inspecting, readers, tokenizer, tokenizing
from krakenlm.text.documents import Corpus
from krakenlm.text.store import SPLITS, TokenStore
from krakenlm.text.tokenizer import Encoder, load_tokenizer, train_tokenizer

LINES = [f"The number {number} comes before {number + 1}, naïve 火." for number in range(300)]
SETTINGS = {"source": "files", "seed": 3, "validation_share": 0.1, "column": "text", "document": "line"}


def make(folder, shards=1):
    """A corpus folder and a tokenizer below `folder`."""
    (folder / "lines.txt").write_text("\n".join(LINES))
    settings = SETTINGS | {"files": [str(folder / "lines.txt")]}
    corpus.write(folder / "corpus", settings, shards)
    train_tokenizer(folder / "corpus", 300, folder / "tokenizer.json")
    return folder / "corpus", folder / "tokenizer.json"


def content(tokens):
    return [(tokens / name).read_bytes() for name in ("train.bin", "val.bin", "manifest.json")]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """(corpus of four shards, tokenizer.json)."""
    monkeypatch.setattr(readers, "PIECE_BYTES", 1500)
    return make(tmp_path, shards=4)


def test_files_are_byte_for_byte_those_of_the_authors_recipe(made, tmp_path):
    import datasets

    tokenizing.tokenize(*made, tmp_path / "tokens")
    encoding = load_tokenizer(made[1])
    splits = datasets.Dataset.from_dict({"text": LINES}).train_test_split(test_size=0.1, seed=3, shuffle=True)
    for split, name in {"train": "train", "val": "test"}.items():
        ids = [token for text in splits[name]["text"] for token in [*encoding.encode(text).ids, 0]]
        assert (tmp_path / "tokens" / f"{split}.bin").read_bytes() == np.array(ids, "<u2").tobytes()


def test_tokens_do_not_depend_on_the_shards_nor_on_who_made_them(made, tmp_path):
    tokenizing.tokenize(*made, tmp_path / "tokens")
    assert not (tmp_path / "tokens" / "shards").exists()
    for shard in (2, 0, 3, 1):
        tokenizing.tokenize_shard(*made, tmp_path / "apart" / "shards", shard)
    made_apart = [path.stat().st_mtime_ns for path in sorted((tmp_path / "apart" / "shards").iterdir())]
    assert len(made_apart) == 12
    tokenizing.tokenize(*made, tmp_path / "apart")
    assert content(tmp_path / "apart") == content(tmp_path / "tokens")
    (tmp_path / "whole").mkdir()
    whole, _ = make(tmp_path / "whole")
    tokenizing.tokenize(whole, made[1], tmp_path / "one")
    assert content(tmp_path / "one") == content(tmp_path / "tokens")


@pytest.mark.parametrize("damage", ["bin", "ends", "json"])
def test_a_broken_shard_alone_is_made_again(made, tmp_path, damage, monkeypatch):
    tokenizing.tokenize(*made, tmp_path / "right")
    for shard in range(4):
        tokenizing.tokenize_shard(*made, tmp_path / "tokens" / "shards", shard)
    path = tmp_path / "tokens" / "shards" / f"00002.{damage}"
    path.write_bytes(path.read_bytes().replace(b"2", b"3")[:-1] + b"}")
    again, tokenize_shard = [], tokenizing.tokenize_shard
    monkeypatch.setattr(tokenizing, "tokenize_shard", lambda *call: (again.append(call[3]), tokenize_shard(*call)))
    tokenizing.tokenize(*made, tmp_path / "tokens")
    assert again == [2]
    assert content(tmp_path / "tokens") == content(tmp_path / "right")


def test_shards_of_another_tokenizer_are_not_taken(made, tmp_path):
    tokenizing.tokenize_shard(*made, tmp_path / "tokens" / "shards", 0)
    assert tokenizing.is_made(Corpus(made[0]), 0, made[1], tmp_path / "tokens" / "shards")
    train_tokenizer(made[0], 290, tmp_path / "other.json")
    assert not tokenizing.is_made(Corpus(made[0]), 0, tmp_path / "other.json", tmp_path / "tokens" / "shards")


def test_a_file_that_changes_after_the_corpus_stage_is_refused(made, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(LINES[1:]))
    with pytest.raises(InputError, match=r"lines\.txt: expected the file as it was when the corpus stage began"):
        tokenizing.tokenize(*made, tmp_path / "tokens")
    assert not (tmp_path / "tokens" / "manifest.json").exists()


def test_a_shard_that_the_corpus_does_not_have_is_refused(made, tmp_path):
    with pytest.raises(InputError, match="shard: expected 0 to 3, found 4"):
        tokenizing.tokenize_shard(*made, tmp_path, 4)


def run_until_rename(number, made, out):
    """Tokenize, but die by SIGKILL at the moment of the rename of this number."""
    renames, replace = [], os.replace

    def replace_or_die(*arguments):
        renames.append(arguments)
        if len(renames) > number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    os.replace = replace_or_die
    tokenizing.tokenize(*made, out)


def test_killed_at_any_point_it_leaves_nothing_that_looks_finished_and_goes_on(made, tmp_path):
    tokenizing.tokenize(*made, tmp_path / "right")
    fork, killed = multiprocessing.get_context("fork"), 0
    for number in range(99):
        process = fork.Process(target=run_until_rename, args=(number, made, tmp_path / "tokens"))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "tokens" / "manifest.json").exists()
        killed += 1
        if number % 3 == 2:
            # Each third time from nothing, else on top of what the last one left.
            subprocess.run(["rm", "-r", tmp_path / "tokens"], check=True)
    assert killed > 3
    assert content(tmp_path / "tokens") == content(tmp_path / "right")
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == ["manifest.json", "train.bin", "val.bin"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path):
    lines = "".join(f"{number} {line}\n" for number in range(70) for line in LINES)
    (tmp_path / "lines.txt").write_text(lines)
    corpus.write(tmp_path / "corpus", SETTINGS | {"files": [str(tmp_path / "lines.txt")]})
    train_tokenizer(tmp_path / "corpus", 300, tmp_path / "tokenizer.json")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        with pytest.raises(InputError, match=r"00000\.(bin|ends): no space left on the disk \(0 MB free\)"):
            tokenizing.tokenize(tmp_path / "corpus", tmp_path / "tokenizer.json", disk / "tokens")
        assert [path for path in disk.rglob("*") if path.is_file()] == []
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        tokenizing.tokenize(tmp_path / "corpus", tmp_path / "tokenizer.json", disk / "tokens")
        for split in SPLITS:
            TokenStore(disk / "tokens").tokens(split)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_document_in_parts_has_the_tokens_of_the_whole(made, monkeypatch):
    text = " \n naïve  things\n\n\nat  the end,\tand 火 don't stop \u2028 here 123 times... \x1c go\u00a0on  \n" * 9
    whole = Encoder(made[1]).encode([text, "short"])
    for characters in (1, 2, 3, 10, 33):
        monkeypatch.setattr(tokenizer, "PART_CHARACTERS", characters)
        parts = Encoder(made[1]).encode([text, "short"])
        if characters > 3:
            assert len(tokenizer.part_of(text)) > 3
            assert np.array_equal(parts[0], whole[0])
            assert np.array_equal(parts[1], whole[1])
        assert "".join(tokenizer.part_of(text)) == text


def test_documents_of_a_tokenizer_that_may_cross_blanks_are_never_parted(made, monkeypatch, tmp_path):
    content = json.loads(made[1].read_text())
    assert tokenizer.splits_at_blanks(load_tokenizer(made[1]))
    for change in ({"normalizer": {"type": "NFC"}}, {"pre_tokenizer": None}):
        (tmp_path / "other.json").write_text(json.dumps(content | change))
        assert not tokenizer.splits_at_blanks(load_tokenizer(tmp_path / "other.json"))


def test_empty_batches_and_shards_are_no_trouble(tmp_path):
    made = make(tmp_path, shards=3)
    assert Corpus(made[0]).count(0) == 0
    tokenizing.tokenize(*made, tmp_path / "tokens")
    assert TokenStore(tmp_path / "tokens").manifest["splits"]["train"]["documents"] == 270


@pytest.fixture
def nanogpt(made, tmp_path):
    """(folder with train.bin and val.bin, tokens folder they were made in)."""
    tokenizing.tokenize(*made, tmp_path / "tokens")
    (tmp_path / "prepared").mkdir()
    for name in ("train.bin", "val.bin"):
        (tmp_path / "prepared" / name).write_bytes((tmp_path / "tokens" / name).read_bytes())
    return tmp_path / "prepared", tmp_path / "tokens"


def adopt(folder, tokenizer_json, out):
    settings = {"source": "bin", "seed": 0, "validation_share": 0.1, "folder": str(folder), "tokenizer": "mine"}
    corpus.write(out / "corpus", settings)
    tokenizing.tokenize(out / "corpus", tokenizer_json, out / "tokens")
    return TokenStore(out / "tokens")


@pytest.mark.parametrize("at_once", [1, 100, 1 << 24])
def test_token_files_made_elsewhere_are_used_in_place_and_counted_the_same(
    nanogpt, made, tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(tokenizing, "CHECKED_AT_ONCE", at_once)
    folder, tokens = nanogpt
    store = adopt(folder, made[1], tmp_path / "adopted")
    assert (store.directory / "train.bin").resolve() == folder / "train.bin"
    assert store.manifest["splits"] == TokenStore(tokens).manifest["splits"]
    assert store.manifest["data"] == "prepared"
    for split in SPLITS:
        store.tokens(split)


def test_token_files_that_cannot_be_the_tokenizers_are_refused(nanogpt, made, tmp_path):
    folder, _ = nanogpt
    ids = np.fromfile(folder / "val.bin", "<u2")
    ids[7] = 300
    ids.tofile(folder / "val.bin")
    with pytest.raises(InputError, match=r"val\.bin: expected ids below 300, .* found 300 at 7; set text\.tokenizer"):
        adopt(folder, made[1], tmp_path / "adopted")
    (folder / "val.bin").write_bytes(b"123")
    with pytest.raises(InputError, match=r"val\.bin: expected uint16 tokens, found 3 bytes"):
        adopt(folder, made[1], tmp_path / "adopted")
    (folder / "val.bin").unlink()
    with pytest.raises(InputError, match=r"val\.bin: expected uint16 tokens, found no file"):
        adopt(folder, made[1], tmp_path / "adopted")
    assert not (tmp_path / "adopted" / "tokens" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "published"),
    [
        ({}, tokenizing.PUBLISHED_TOKENS),
        ({"seed": 1}, None),
        ({"validation_share": 0.1}, None),
        ({"name": "someone/stories"}, None),
        ({"tokenizer": "mine.json"}, None),
        ({"deduplicate": True}, None),
    ],
)
def test_published_counts_are_those_of_the_authors_split_alone(change, published):
    settings = tokenizing.PUBLISHED_SETTINGS | {"tokenizer": "gpt2", "revision": "main"} | change
    assert tokenizing.published_tokens(settings) == published


def test_statistics_and_samples_show_what_is_in_the_tokens(made, tmp_path, capsys, monkeypatch):
    tokenizing.tokenize(*made, tmp_path / "tokens")
    train, val = inspecting.statistics(tmp_path / "tokens")
    assert (train["documents"], val["documents"]) == (270, 30)
    assert train["longest"] >= train["95%"] >= train["50%"] >= train["shortest"] > 1
    whole = TokenStore(tmp_path / "tokens").tokens("val")
    ((start, text),) = inspecting.samples(tmp_path / "tokens", made[1], "val", 1, len(whole), seed=0)
    assert start == 0
    documents = text.split("<|endoftext|>")
    assert sorted(documents[:-1]) == sorted(set(documents) & set(LINES))
    drawn = [list(inspecting.samples(tmp_path / "tokens", made[1], "train", 3, 20, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    monkeypatch.setattr("sys.argv", ["krakenlm", "text", "stats", str(tmp_path / "tokens")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "documents                        270                  30" in capsys.readouterr().out


def test_samples_need_the_tokenizer_of_the_tokens(made, tmp_path):
    tokenizing.tokenize(*made, tmp_path / "tokens")
    train_tokenizer(made[0], 290, tmp_path / "other.json")
    with pytest.raises(InputError, match=r"other\.json: expected the tokenizer .* of 300 tokens, found .*290"):
        next(inspecting.samples(tmp_path / "tokens", tmp_path / "other.json", "val", 1, 5, 0))
