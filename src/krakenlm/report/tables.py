"""Result tables as text: put together without touching a digit, and read for the page."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow
from pyarrow import csv as convert
from pyarrow import parquet

from krakenlm.errors import InputError
from krakenlm.files import writing


def collect(parts: Sequence[Path], out: Path) -> None:
    """Write the rows of all parts below one header; of CSV, each row as the very text that its part has.

    Args:
        parts: CSV or parquet files of equal columns in equal order, a CSV with at least one row.
        out: where the whole goes; a file that was there stays until the new one is complete.

    Raises:
        InputError: no parts, or a part is missing, empty, cut off, or has other columns than the first.
    """
    if not parts:
        raise InputError(f"{out}: expected at least one table to collect, found none; name the parts")
    if Path(out).suffix == ".parquet":
        collect_parquet(parts, out)
        return
    first, *others = [Part(Path(part)) for part in parts]
    for part in others:
        part.check_same_columns(first)
    with writing(out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(first.header)
        for part in (first, *others):
            file.write(part.body)


def rows_of(path: Path) -> list[dict]:
    """A CSV's rows with numbers as numbers; an empty cell is None."""
    options = convert.ConvertOptions(strings_can_be_null=True, null_values=[""])
    return convert.read_csv(path, convert_options=options).to_pylist()


def collect_parquet(parts: Sequence[Path], out: Path) -> None:
    tables = [read_parquet(part) for part in parts]
    for part, table in zip(parts, tables, strict=True):
        if table.column_names != tables[0].column_names:
            raise InputError(
                f"{part}: expected the columns of {parts[0]} ({', '.join(tables[0].column_names)}), found "
                f"{', '.join(table.column_names)}; make both with the same version"
            )
    with writing(out) as temporary:
        parquet.write_table(pyarrow.concat_tables(tables, promote_options="permissive"), temporary)


def read_parquet(path: Path) -> pyarrow.Table:
    """A parquet file's table.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return parquet.ParquetFile(path).read()
    except FileNotFoundError:
        raise InputError(f"{path}: expected a table, found no file; run the stage that writes it") from None
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: expected parquet, found a damaged file ({error}); delete it and run again") from None


class Part:
    """One CSV file: `columns`, its `header` and its `body` as text (line ends as they are), its number of rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = read_text(path)
        self.columns, *records = parse(path, text) or [[]]
        if not self.columns:
            raise InputError(f"{path}: expected a table, found an empty file; delete it and run again")
        if not records:
            raise InputError(
                f"{path}: expected rows below the header, found none; delete it and run again, "
                "or look into the log of the stage that wrote it"
            )
        self.rows = len(records)
        stream = io.StringIO(text.lstrip("\r\n"), newline="")
        self.header, self.body = stream.readline(), stream.read()
        if not self.body.endswith(("\n", "\r")):
            self.body += "\n"

    def check_same_columns(self, first: "Part") -> None:
        if self.columns == first.columns:
            return
        missing = [name for name in first.columns if name not in self.columns]
        more = [name for name in self.columns if name not in first.columns]
        found = [f"without {', '.join(missing)}"] if missing else []
        found += [f"with {', '.join(more)} besides"] if more else []
        raise InputError(
            f"{self.path}: expected the columns of {first.path} ({', '.join(first.columns)}), found them "
            f"{'; '.join(found) or 'in another order'}; make both with the same version"
        )


def read_text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise InputError(f"{path}: expected a table, found no file; run the stage that writes it") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, found a damaged file ({error}); delete it and run again"
        ) from None


def parse(path: Path, text: str) -> list[list[str]]:
    """Header and rows; blank lines do not count.

    Raises:
        InputError: a row has more or fewer fields than the header.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = []
    try:
        for record in reader:
            if not record:
                continue
            records.append(record)
            if len(record) != len(records[0]):
                raise InputError(
                    f"{path}: expected {len(records[0])} fields in each row, found {len(record)} in line "
                    f"{reader.line_num}; delete it and run again"
                )
    except csv.Error as error:
        raise InputError(
            f"{path}: expected CSV, found a damaged file (line {reader.line_num}: {error}); delete it and run again"
        ) from None
    return records


def read(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table by column, every value as text; no rows where there is no file or nothing in it.

    Raises:
        InputError: the file is damaged or lacks one of the columns `needed`.
    """
    if not Path(path).exists():
        return []
    records = parse(Path(path), read_text(Path(path)))
    if not records:
        return []
    missing = [name for name in needed if name not in records[0]]
    if missing:
        raise InputError(
            f"{path}: expected the columns {', '.join(needed)}, found none named {', '.join(missing)}; "
            "make it again with this version"
        )
    return [dict(zip(records[0], record, strict=True)) for record in records[1:]]
