import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from krakenlm.errors import InputError
from krakenlm.text import readers


def documents(path, column="text", document="line"):
    return [text for piece in readers.cut(path, document) for text in readers.read(piece, column, document)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def compress(suffix, content):
    if suffix == ".gz":
        return gzip.compress(content)
    return pyarrow.Codec("zstd").compress(content, asbytes=True) if suffix == ".zst" else content


LINES = [f"line {number} says naïve 火 things" for number in range(300)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text_and_json_lines_read_the_same_compressed_or_not(tmp_path, suffix):
    text = compress(suffix, "\n".join(LINES).encode())
    objects = compress(suffix, "".join(json.dumps({"n": 1, "text": line}) + "\n" for line in LINES).encode())
    assert documents(write(tmp_path / f"a.txt{suffix}", text)) == LINES
    assert documents(write(tmp_path / f"a.jsonl{suffix}", objects)) == LINES


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_put_behind_one_another_are_one_file(tmp_path, suffix):
    parts = compress(suffix, b"one\ntwo\n") + compress(suffix, b"three\n")
    assert documents(write(tmp_path / f"a.txt{suffix}", parts)) == ["one", "two", "three"]


@pytest.mark.parametrize("size", [1, 7, 50, 1000, 10**9])
def test_every_line_is_in_exactly_one_piece_wherever_pieces_end(tmp_path, monkeypatch, size):
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    lines = ["a", "bb", "", "cccc", "naïve", "x" * 40, "end"]
    for end in ("\n", "\r\n"):
        path = write(tmp_path / "a.txt", end.join(lines))
        assert documents(path) == [line for line in lines if line]


def test_row_groups_of_a_parquet_file_are_shared_among_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_BYTES", 2000)
    table = pyarrow.table({"id": range(300), "text": pyarrow.array(LINES, pyarrow.large_string())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    assert len(readers.cut(tmp_path / "a.parquet")) > 3
    assert documents(tmp_path / "a.parquet") == LINES


def test_a_parquet_file_without_rows_has_no_documents(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == []


def test_empty_blank_and_null_documents_are_left_out(tmp_path):
    objects = '{"text": ""}\n\n{"text": null}\n{"text": " \\n"}\n{"text": "kept"}\n'
    assert documents(write(tmp_path / "a.jsonl", objects)) == ["kept"]
    assert documents(write(tmp_path / "a.txt", "\n \nkept\n\n")) == ["kept"]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["", None, " ", "kept"]}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == ["kept"]


def test_windows_line_ends_and_a_byte_order_mark_are_no_text(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\rstill three\r\n")
    assert documents(path) == ["one", "two", "three\rstill three"]
    assert documents(path, document="paragraph") == ["one\ntwo", "three\rstill three"]
    assert documents(path, document="file") == ["one\ntwo\n\nthree\rstill three\n"]


def test_nul_bytes_are_text(tmp_path):
    assert documents(write(tmp_path / "a.txt", b"a\0b\n\0\n")) == ["a\0b", "\0"]
    assert documents(write(tmp_path / "a.jsonl", '{"text": "a\\u0000b"}\n')) == ["a\0b"]


def test_other_separators_than_line_feeds_end_no_line(tmp_path):
    line = "a\u2028b\x0bc\x0cd\x1ce\x85f"
    assert documents(write(tmp_path / "a.txt", line + "\n")) == [line]
    assert documents(write(tmp_path / "a.jsonl", json.dumps({"text": line}, ensure_ascii=False))) == [line]


def test_one_line_of_200_mb_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        for _ in range(200):
            file.write(b"ten bytes " * 100_000)
    (text,) = documents(path)
    assert len(text) == 200_000_000
    assert text.startswith("ten bytes ten")


def test_a_line_longer_than_memory_should_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 100)
    path = write(tmp_path / "a.txt", "short\n" + 120 * "x")
    with pytest.raises(InputError, match=r"a\.txt: expected lines of less than 100 bytes, .* longer one at byte 6"):
        documents(path)
    with pytest.raises(InputError, match=r"a\.txt: expected "):
        documents(path, document="file")


def gzipped(content: bytes) -> bytes:
    """Without the time of day, so that a test has the same name in every process."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", b"good\nbad \xff here\n", "expected UTF-8, found byte 0xff at byte 9, line 2"),
        (
            "a.txt.gz",
            gzipped(b"good\nbad \xff here\n"),
            "expected UTF-8, found byte 0xff at byte 9, line 2",
        ),
        ("a.txt", b"good\n\xc3", "expected UTF-8, found an unfinished character at byte 5, line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', "expected UTF-8, found byte 0xe9 at byte 24, line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "cut off in the mi', 'expected a JSON object in line 2, found \'{"text"'),
        ("a.jsonl", b"[1]\n", "expected a JSON object in line 1"),
        ("a.jsonl", b"[" * 200_000, "expected a JSON object in line 1"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "found half of a surrogate pair in line 1"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', "line 2\\), found 'text'"),
        ("a.jsonl", b'{"text": 3}\n', "expected text in 'text' of .*, found int in line 1"),
        (
            "a.jsonl.gz",
            gzipped(b'{"text": "x"}\n' * 999)[:-9],
            "expected gz, could not read it .*Truncated",
        ),
        ("a.jsonl.gz", b'{"text": "x"}\n', "expected gz, could not read it .*header"),
        ("a.txt.zst", compress(".zst", b"x\n" * 999)[:-3], "expected zst, could not read it .*Truncated"),
        ("a.txt.zst", gzipped(b"x\n"), "expected zst, could not read it"),
        ("a.parquet", b"PAR1 but no more", "expected parquet, could not read it"),
        ("a.txt", b"", "expected text, found an empty file"),
        ("a.md", b"text", "expected one of .txt, .* found '.md'"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_in_one_line(tmp_path, name, content, line):
    with pytest.raises(InputError, match=line) as refusal:
        documents(write(tmp_path / name, content))
    assert "\n" not in str(refusal.value)
    assert name in str(refusal.value)


def test_a_gzip_whose_checksum_or_length_lies_is_refused(tmp_path):
    whole = gzip.compress(b"x\n" * 999)
    for place in (-6, -2):
        lying = bytearray(whole)
        lying[place] ^= 1
        with pytest.raises(InputError, match=r"a\.txt\.gz: expected gz, could not read it .*check"):
            documents(write(tmp_path / "a.txt.gz", bytes(lying)))


def test_a_parquet_file_without_the_column_or_cut_off_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"] * 99, "n": [1] * 99}), path)
    with pytest.raises(InputError, match=r"text\.column: expected one of body, n \(.*a\.parquet\), found 'text'"):
        documents(path)
    with pytest.raises(InputError, match=r"text\.column: expected text in 'n' of .*, found int64"):
        documents(path, column="n")
    write(path, path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"a\.parquet: expected parquet, could not read it"):
        documents(path, column="body")


def test_a_parquet_file_with_bytes_that_are_no_text_is_refused(tmp_path):
    table = pyarrow.table({"text": pyarrow.array([b"fine", b"\xff"], pyarrow.binary())})
    pyarrow.parquet.write_table(
        table.cast(pyarrow.schema([("text", pyarrow.string())]), safe=False), tmp_path / "a.parquet"
    )
    with pytest.raises(InputError, match=r"a\.parquet: expected UTF-8, found byte 0xff in rows 0 to 1"):
        documents(tmp_path / "a.parquet")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\nthree\n")
    (piece,) = readers.cut(path)
    texts = readers.read(piece)
    next(texts)
    with open(path, "a") as file:
        file.write("four\n")
    with pytest.raises(InputError, match=r"a\.txt: expected the file as it was .*\(14 bytes\), found it changed \(19 "):
        list(texts)
    os.remove(path)
    with pytest.raises(InputError, match=r"a\.txt: .* found it gone"):
        next(readers.read(piece))
