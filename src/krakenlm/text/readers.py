"""Documents out of files, in order and in bounded memory: .txt, .jsonl (either may be .gz or .zst) and .parquet.

A file is cut into pieces that different processes can read. Every document of a file is in exactly one of its pieces.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from krakenlm.config import TEXT_SUFFIXES
from krakenlm.errors import InputError

# What one process reads at a time, in bytes of the file: small enough that even two shards of 100 MB are about equal,
# large against a seek.
PIECE_BYTES = 8_000_000
# A line or file longer than this is not held in memory. A 200 MB document is unusual, not wrong.
LONGEST_DOCUMENT = 1_000_000_000
ROWS_AT_ONCE = 256
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class Piece:
    """Part of a file: bytes `start` to `stop`, or row groups of a .parquet. `size` and `changed` are the file's."""

    path: str
    start: int
    stop: int
    size: int
    changed: int


def kind(path: str | Path) -> str:
    """`.txt`, `.jsonl` or `.parquet`, whatever compression comes behind it."""
    path = Path(path)
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def cut(path: str | Path, document: str = "line") -> list[Piece]:
    """The pieces of a file, of about PIECE_BYTES each where its format lets a reader start in the middle.

    Args:
        path: the file.
        document: what one document of a .txt is: `line`, `paragraph` or `file`.

    Raises:
        InputError: the file is missing, empty, of an unknown kind, or a .parquet that cannot be read.
    """
    path = Path(path)
    if not path.name.endswith(TEXT_SUFFIXES):
        raise InputError(
            f"{path}: expected one of {', '.join(TEXT_SUFFIXES)}, found {path.suffix or 'no suffix'!r}; convert it"
        )
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none; correct text.files")
    status = path.stat()
    if status.st_size == 0:
        raise InputError(f"{path}: expected text, found an empty file; leave it out of text.files")
    if path.suffix == ".parquet":
        bounds = row_groups(path)
    elif path.suffix in COMPRESSIONS or (kind(path) == ".txt" and document != "line"):
        bounds = [0, status.st_size]
    else:
        bounds = [*range(0, status.st_size, PIECE_BYTES), status.st_size]
    return [
        Piece(str(path), start, stop, status.st_size, status.st_mtime_ns) for start, stop in itertools.pairwise(bounds)
    ]


def row_groups(path: Path) -> list[int]:
    """Numbers of the row groups at which the pieces of a .parquet begin, and of the end."""
    with explaining_damage(path), pyarrow.parquet.ParquetFile(path) as file:
        bounds, held = [0], 0
        for number in range(file.metadata.num_row_groups):
            held += file.metadata.row_group(number).total_byte_size
            if held >= PIECE_BYTES:
                bounds.append(number + 1)
                held = 0
        groups = file.metadata.num_row_groups
    return bounds if bounds[-1] == groups else [*bounds, groups]


def read(piece: Piece, column: str = "text", document: str = "line") -> Iterator[str]:
    """The documents of a piece in order, blank ones left out.

    Lines of a .txt end with LF or CRLF; a byte order mark before the first is no text.

    Args:
        piece: what to read.
        column: the key or column of a .jsonl or .parquet that holds the text.
        document: what one document of a .txt is: `line`, `paragraph` or `file`.

    Raises:
        InputError: the file has changed since it was cut, is damaged, is not UTF-8, or lacks the column; naming it
            and the line, row or byte.
    """
    refuse_changed(piece)
    if piece.path.endswith(".parquet"):
        texts = read_rows(piece, column)
    elif kind(piece.path) == ".jsonl":
        texts = (parse(piece, start, line, column) for start, line in lines(piece))
    elif document == "line":
        texts = (decode(piece, start, strip_end(line)) for start, line in lines(piece))
    else:
        texts = read_paragraphs(piece) if document == "paragraph" else read_whole(piece)
    for text in texts:
        if text and not text.isspace():
            yield text
    refuse_changed(piece)


def refuse_changed(piece: Piece) -> None:
    path = Path(piece.path)
    status = path.stat() if path.is_file() else None
    if status is None or (status.st_size, status.st_mtime_ns) != (piece.size, piece.changed):
        raise InputError(
            f"{path}: expected the file as it was when the corpus stage began ({piece.size} bytes), found it "
            f"{'gone' if status is None else f'changed ({status.st_size} bytes)'}; leave it alone and run again"
        )


@contextlib.contextmanager
def explaining_damage(path: str | Path) -> Iterator[None]:
    """Turn what pyarrow and the system raise while they read `path` into one clear line.

    Raises:
        InputError: naming the file.
    """
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"{path}: expected {Path(path).suffix[1:]}, could not read it ({reason}); correct the file"
        ) from None


def lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """(first byte, line with its end) of every line that begins in the piece; bytes are counted uncompressed."""
    compression = COMPRESSIONS.get(Path(piece.path).suffix)
    with explaining_damage(piece.path), open_bytes(piece.path) as file:
        position = 0
        if piece.start:
            # The line that began before is the piece before's: go on behind its end.
            file.seek(piece.start - 1)
            position = piece.start - 1 + len(file.readline())
        while compression or position < piece.stop:
            line = file.readline(LONGEST_DOCUMENT)
            if not line:
                return
            if len(line) == LONGEST_DOCUMENT:
                raise InputError(
                    f"{piece.path}: expected lines of less than {LONGEST_DOCUMENT} bytes, found a longer one at byte "
                    f"{position}; break it into several"
                )
            yield position, line.removeprefix(b"\xef\xbb\xbf") if position == 0 else line
            position += len(line)


def open_bytes(path: str | Path) -> io.BufferedReader:
    """The file's bytes, uncompressed."""
    compression = COMPRESSIONS.get(Path(path).suffix)
    raw = pyarrow.input_stream(str(path), compression=compression) if compression else io.FileIO(path)
    return io.BufferedReader(raw, 1 << 20)


def strip_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def decode(piece: Piece, start: int, content: bytes) -> str:
    """UTF-8 as text; `start` is the first byte's place in the file."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        # A file's last character may lack its end, which is another fault than a wrong byte.
        cut_off = error.reason == "unexpected end of data"
        found = "an unfinished character" if cut_off else f"byte 0x{content[error.start]:02x}"
        place = start + error.start
        raise InputError(
            f"{piece.path}: expected UTF-8, found {found} at byte {place}, line {line_number(piece, place)}; "
            "convert the file to UTF-8"
        ) from None


def line_number(piece: Piece, place: int) -> int:
    """Number of the line that holds byte `place`; only an error needs it, so the file is read for it."""
    number, left = 1, place
    with open_bytes(piece.path) as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            number += block.count(b"\n")
            left -= len(block)
    return number


def parse(piece: Piece, start: int, line: bytes, column: str) -> str:
    """The text in one line of a .jsonl; a blank line and null give an empty one."""
    if line.isspace():
        return ""
    try:
        value = json.loads(decode(piece, start, line))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        found = strip_end(line[:40]).decode("utf-8", "replace")
        raise InputError(
            f"{piece.path}: expected a JSON object in line {line_number(piece, start)}, found {found!r}; "
            "correct the line"
        )
    if column not in value:
        raise InputError(
            f"text.column: expected one of {', '.join(value)} ({piece.path}, line {line_number(piece, start)}), "
            f"found {column!r}; set it"
        )
    text = value[column]
    if text is not None and not isinstance(text, str):
        raise InputError(
            f"text.column: expected text in {column!r} of {piece.path}, found {type(text).__name__} in line "
            f"{line_number(piece, start)}; choose another column"
        )
    # An escape can spell half of a surrogate pair, which is no character.
    if text and b"\\u" in line and any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(
            f"{piece.path}: expected text, found half of a surrogate pair in line {line_number(piece, start)}; "
            "correct the line"
        )
    return text or ""


def read_rows(piece: Piece, column: str) -> Iterator[str]:
    """The texts of a .parquet's row groups; null gives an empty one."""
    # Without buffering ahead and with one thread a row group is never in memory whole.
    with explaining_damage(piece.path), pyarrow.parquet.ParquetFile(piece.path, pre_buffer=False) as file:
        check_column(file.schema_arrow, column, piece.path)
        groups = range(piece.start, piece.stop)
        row = sum(file.metadata.row_group(number).num_rows for number in range(piece.start))
        for batch in file.iter_batches(ROWS_AT_ONCE, groups, [column], use_threads=False):
            try:
                texts = batch.column(0).to_pylist()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{piece.path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} in rows {row} to "
                    f"{row + len(batch) - 1}; correct the file"
                ) from None
            yield from (text or "" for text in texts)
            row += len(batch)


def check_column(schema: pyarrow.Schema, column: str, path: str) -> None:
    """Refuse a table without the column, or with something else than text in it."""
    if column not in schema.names:
        raise InputError(f"text.column: expected one of {', '.join(schema.names)} ({path}), found {column!r}; set it")
    kind_of_values = schema.field(column).type
    if not (pyarrow.types.is_string(kind_of_values) or pyarrow.types.is_large_string(kind_of_values)):
        raise InputError(
            f"text.column: expected text in {column!r} of {path}, found {kind_of_values}; choose another column"
        )


def read_paragraphs(piece: Piece) -> Iterator[str]:
    """Lines up to a blank one are one document."""
    held, first = [], 0
    for start, line in lines(piece):
        content = strip_end(line)
        if content.strip():
            first = first if held else start
            held.append(content)
        elif held:
            yield decode(piece, first, b"\n".join(held))
            held = []
    if held:
        yield decode(piece, first, b"\n".join(held))


def read_whole(piece: Piece) -> Iterator[str]:
    """The file is one document."""
    content = []
    for start, line in lines(piece):
        if start + len(line) > LONGEST_DOCUMENT:
            raise InputError(
                f"{piece.path}: expected a document of at most {LONGEST_DOCUMENT} bytes, found a larger file; choose "
                "another text.document"
            )
        content.append(line.replace(b"\r\n", b"\n"))
    yield decode(piece, 0, b"".join(content))
