"""Files that are whole or absent, and the lock that keeps a second writer away from a first."""

import contextlib
import csv
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from krakenlm.errors import InputError

# Bytes free on a disk to which a large write has just failed: less than one more block of it.
NEARLY_NOTHING = 1_000_000
# Bytes of a lock's file that its holder has removed: a file system that several machines share may show its name to the
# others for some seconds more. Cutting a file short needs no space on a disk that is full.
REMOVED = 1


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place once the block has ended without an error.

    A process that dies in the block leaves `path` as it was (at worst with a hidden file beside it).

    Raises:
        InputError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".{os.getpid()}.part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with explaining_full_disk(path):
            yield temporary
            sync(temporary)
            # mkstemp makes private files; a result is as readable as the user's umask says.
            temporary.chmod(0o666 & ~current_umask())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes `path`'s place once the block has ended without an error.

    What was in `path` before goes; a process that dies in the block leaves it as it was.

    Raises:
        InputError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=f".{os.getpid()}.part", dir=path.parent))
    try:
        with explaining_full_disk(path):
            yield temporary
            # mkdtemp and safetensors make private entries; a result is as readable as the user's umask says.
            for entry in [*temporary.rglob("*"), temporary]:
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~current_umask())
                sync(entry)
        if path.exists():
            shutil.rmtree(path)
        os.rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_other_files(folder: Path, patterns: Sequence[str]) -> None:
    """Refuse to replace a folder that holds more than files of such names and hidden ones, or that is a file.

    Raises:
        InputError: naming what would be lost.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, or nothing yet, found a file; choose another place")
    for entry in folder.iterdir() if folder.exists() else ():
        if not any(fnmatch(entry.name, pattern) for pattern in (*patterns, ".*")):
            raise InputError(
                f"{folder}: expected a folder of {' and '.join(patterns)} alone, since all that is in it is replaced, "
                f"found {entry.name}; choose another folder"
            )


@contextlib.contextmanager
def explaining_full_disk(path: Path) -> Iterator[None]:
    """Turn what a full disk makes a writer of `path` raise into one clear line.

    torch and safetensors raise errors of their own; torch's do not say so, then the disk itself is asked.

    Raises:
        InputError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        disk = os.statvfs(path.parent)
        free = disk.f_bavail * disk.f_frsize
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        full = full or os.strerror(errno.ENOSPC) in str(error)
        if not full and (isinstance(error, InputError) or free > NEARLY_NOTHING):
            raise
        raise InputError(
            f"{path}: no space left on the disk ({free / 1e6:.0f} MB free); free some and run again"
        ) from error


def remove_leftovers(path: Path) -> None:
    """Remove what a killed writer of `path` left beside it (its process is in the name and no longer runs)."""
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        process = leftover.name.split(".")[-2]
        if Path(f"/proc/{process}").exists():
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's or a folder's content to the disk, so that a rename never outlives what it renamed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def copy(source: str | Path, path: str | Path) -> None:
    with writing(path) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: str | Path, text: str) -> None:
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(path: str | Path, rows: Iterable[Mapping], columns: Sequence[str]) -> list[dict]:
    """Write rows as CSV and return them with every column; what a row lacks is None there, an empty cell here."""
    rows = [{column: row.get(column) for column in columns} for row in rows]
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def read_json(path: str | Path) -> dict:
    """Read a JSON file that an earlier stage wrote.

    Raises:
        InputError: it is missing, not JSON, or no object with keys.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a JSON file, found none; run the stage that writes it") from None
    except OSError as error:  # a folder, a file of another user's, a file where a folder should be
        raise InputError(f"{path}: expected a JSON file, found none to read ({error.strerror}); correct it") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected JSON, found a damaged file ({error}); delete it and run again") from None
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: expected an object with keys, found {json.dumps(found)[:40]}; delete it and run again"
        )
    return found


@contextlib.contextmanager
def hold(path: str | Path, stage: str) -> Iterator[None]:
    """Hold a lock beside `path` for its writer; a second writer waits for the first and says for whom.

    The kernel frees the lock with the process, however that ends. The lock's file goes with it, except where the
    process is killed; then it is in nobody's way.
    """
    lock_path = Path(path).with_name(f".{Path(path).name}.lock")
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(lock_path, stage) as lock:
        lock.seek(0)
        lock.truncate()
        # The blank is what `REMOVED` leaves of it.
        lock.write(f" process {os.getpid()}, which writes {path} ({stage})\n")
        lock.flush()
        try:
            yield
        finally:
            # Still locked, and known to be the file of that name: whoever waits for it finds that it is not any more.
            lock_path.unlink(missing_ok=True)
            lock.truncate(REMOVED)


@contextlib.contextmanager
def locked_file(path: Path, stage: str) -> Iterator[IO[str]]:
    """The file of that name, locked. One that its holder removed while we waited is locked by us alone: look again."""
    while True:
        with open(path, "a+", encoding="utf-8") as lock:
            if lock_of_that_name(lock, path, stage):
                yield lock
                return


def lock_of_that_name(lock: IO[str], path: Path, stage: str) -> bool:
    """Lock a file; False where it is not `path` any more."""
    with unless_removed():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            print(f"{stage}: waiting for {lock.read().strip() or 'another process'}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        status = os.fstat(lock.fileno())
        return status.st_size != REMOVED and os.path.samestat(status, os.stat(path))
    return False


@contextlib.contextmanager
def unless_removed() -> Iterator[None]:
    """Leave the block where a file is gone, or where another machine has removed what was open here (NFS)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise


def claim(path: str | Path, command: str) -> object:
    """Lock `path` for as long as the returned file object lives.

    Raises:
        InputError: another process has it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - it stays open, that is the lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise InputError(
            f"{path}: expected to be the only {command} at work here, found {holder}; wait for it or end it"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} ({command})\n")
    lock.flush()
    return lock


def held_locks(folder: str | Path) -> list[str]:
    """Who holds a writer's lock (`hold`) somewhere under `folder` at this moment."""
    holders = []
    for path in sorted(Path(folder).rglob(".*.lock")):
        with unless_removed(), open(path, encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holders.append(lock.read().strip())
    return holders
