import pyarrow
import pytest
from pyarrow import parquet

from krakenlm.errors import InputError
from krakenlm.report.tables import collect, read_parquet


def write(folder, **texts):
    paths = []
    for name, text in texts.items():
        paths.append(folder / f"{name}.csv")
        paths[-1].write_text(text)
    return paths


def test_rows_of_all_parts_stand_below_one_header_with_their_text_untouched(tmp_path):
    parts = write(tmp_path, a="model,loss\nx,1.10\n", b='model,loss\n"y, z",1e-05\nw,0.30000000000000004')
    collect(parts, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == ('model,loss\nx,1.10\n"y, z",1e-05\nw,0.30000000000000004\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found an empty file"),
        ("model,loss\n", "expected rows below the header, found none"),
        ("model,perplexity\nx,1\n", "without loss; with perplexity besides"),
        ("loss,model\n1,x\n", "in another order"),
        ("model,loss\nx,1\ny\n", "expected 2 fields in each row, found 1 in line 3"),
        ('model,loss\n"x,1\n', "found a damaged file"),
    ],
)
def test_a_part_that_does_not_fit_is_named_and_the_earlier_table_stays(tmp_path, text, message):
    parts = write(tmp_path, good="model,loss\nx,1\n", bad=text)
    (tmp_path / "out.csv").write_text("earlier")
    with pytest.raises(InputError) as error:
        collect(parts, tmp_path / "out.csv")
    assert "bad.csv" in str(error.value)
    assert message in str(error.value)
    assert (tmp_path / "out.csv").read_text() == "earlier"


def test_a_missing_part_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv: expected a table, found no file"):
        collect([tmp_path / "gone.csv"], tmp_path / "out.csv")


def test_no_parts_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least one table"):
        collect([], tmp_path / "out.csv")


def test_parquet_parts_are_put_together_whether_or_not_a_column_is_empty_in_one(tmp_path):
    rows = [{"model": ["x"], "bytes": [None], "nats": [0.1]}, {"model": ["y"], "bytes": [3.0], "nats": [0.2]}]
    parts = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for part, row in zip(parts, rows, strict=True):
        parquet.write_table(pyarrow.table(row), part)
    collect(parts, tmp_path / "out.parquet")
    whole = read_parquet(tmp_path / "out.parquet").to_pydict()
    assert whole == {"model": ["x", "y"], "bytes": [None, 3.0], "nats": [0.1, 0.2]}


def test_a_damaged_missing_or_different_parquet_part_is_named(tmp_path):
    parts = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    parquet.write_table(pyarrow.table({"model": ["x"]}), parts[0])
    with pytest.raises(InputError, match=r"b\.parquet: expected a table, found no file"):
        collect(parts, tmp_path / "out.parquet")
    parts[1].write_bytes(parts[0].read_bytes()[:-9])
    with pytest.raises(InputError, match=r"b\.parquet: expected parquet, found a damaged file"):
        collect(parts, tmp_path / "out.parquet")
    parquet.write_table(pyarrow.table({"task": ["x"]}), parts[1])
    with pytest.raises(InputError, match=r"b\.parquet: expected the columns of .*a\.parquet \(model\), found task"):
        collect(parts, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
