import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from krakenlm import files
from krakenlm.errors import InputError


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), files.writing(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert files.read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_killed_writers_leftover_goes_with_the_next_write(tmp_path):
    (tmp_path / ".value.json.abc.999999999.part").write_text("half")
    files.write_json(tmp_path / "value.json", {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"value.json: no space left"), files.writing(tmp_path / "value.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_damaged_json_names_the_file(tmp_path):
    (tmp_path / "value.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"value.json: expected JSON"):
        files.read_json(tmp_path / "value.json")
    (tmp_path / "value.json").write_text('["a", 1]')
    with pytest.raises(InputError, match=r'value.json: expected an object with keys, found \["a", 1\]; delete it'):
        files.read_json(tmp_path / "value.json")


def hold(path, events, end):
    events.put("arrives")
    with files.hold(path, "first"):
        events.put("in")
        end.wait()
        events.put("out")


def test_a_second_writer_waits_for_the_first(tmp_path):
    context = multiprocessing.get_context("spawn")
    events, ends = context.SimpleQueue(), [context.Event() for _ in range(2)]
    writers = [context.Process(target=hold, args=(tmp_path / "value", events, end)) for end in ends]

    def said():
        deadline = time.monotonic() + 60
        while events.empty():
            assert time.monotonic() < deadline, "nothing was said"
            time.sleep(0.01)
        return events.get()

    writers[0].start()
    assert [said(), said()] == ["arrives", "in"]
    writers[1].start()
    assert said() == "arrives"
    time.sleep(0.2)  # the second would be in now, if it could
    assert events.empty()
    for end in ends:
        end.set()
    assert [said() for _ in range(3)] == ["out", "in", "out"]
    for writer in writers:
        writer.join()


def test_a_claimed_folder_refuses_a_second_claim_and_says_whose_it_is(tmp_path):
    lock = files.claim(tmp_path / ".lock", "snakemake")
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        files.claim(tmp_path / ".lock", "snakemake")
    lock.close()
    files.claim(tmp_path / ".lock", "snakemake").close()


def test_held_locks_are_those_held_now(tmp_path):
    with files.hold(tmp_path / "a" / "value", "train"):
        assert len(files.held_locks(tmp_path)) == 1
    assert files.held_locks(tmp_path) == []


def test_a_librarys_own_error_about_a_full_disk_is_one_clear_line_too(tmp_path):
    with (
        pytest.raises(InputError, match=r"model: no space left on the disk \(\d+ MB free\)"),
        files.writing(tmp_path / "model"),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="something else"), files.writing(tmp_path / "model"):
        raise RuntimeError("something else")


def test_a_folder_is_whole_or_as_it_was_and_takes_its_predecessors_place(tmp_path):
    path = tmp_path / "folder"
    with files.writing_folder(path) as folder:
        (folder / "old").write_text("1")
    with pytest.raises(ZeroDivisionError), files.writing_folder(path) as folder:
        (folder / "new").write_text(f"{1 / 0}")
    assert [entry.name for entry in path.iterdir()] == ["old"]
    (tmp_path / ".folder.abc.999999999.part").mkdir()
    with files.writing_folder(path) as folder:
        (folder / "new").write_text("2")
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_of_writers_that_take_the_lock_in_turn_no_two_are_ever_at_work_and_no_file_is_left(tmp_path):
    body = (
        "import os, sys; from pathlib import Path; from krakenlm.files import hold\n"
        "for turn in range(150):\n"
        "    with hold('out', 'test'):\n"
        "        os.close(os.open('at work', os.O_CREAT | os.O_EXCL)); os.unlink('at work')\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", body], cwd=tmp_path, stderr=subprocess.DEVNULL) for _ in range(4)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_a_removed_lock_is_none_where_the_file_system_still_shows_its_name(tmp_path, monkeypatch, capsys):
    """As NFS may on another machine than that of the holder."""
    lock, look_up, shown = tmp_path / ".value.lock", os.stat, []

    def cached(path, **options):
        return shown.pop() if shown and path == lock else look_up(path, **options)

    def second():
        with files.hold(tmp_path / "value", "second"):
            found.append(lock.exists())

    found, waiter = [], threading.Thread(target=second)
    with files.hold(tmp_path / "value", "first"):
        waiter.start()
        while "second: waiting for process" not in capsys.readouterr().err:
            time.sleep(0.01)
        monkeypatch.setattr(os, "stat", cached)
        shown.append(look_up(lock))
    waiter.join()
    assert found == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_machine_removes_while_it_is_looked_at_is_held_by_nobody(tmp_path, monkeypatch):
    def removed(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    (tmp_path / ".value.lock").touch()
    monkeypatch.setattr(files.fcntl, "flock", removed)
    assert files.held_locks(tmp_path) == []
