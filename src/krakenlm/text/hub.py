"""The files of a data set of the Hugging Face hub, fetched once into the hub's own cache.

`datasets` says which files make up the `train` split; they are fetched at one commit and read as any other files. No
code of a data set's repository is run: `datasets` has no loading scripts any more, and files are read by `readers`.
"""

import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from krakenlm.config import TEXT_SUFFIXES
from krakenlm.errors import InputError

Result = TypeVar("Result")
# Seconds to wait after a failure that may pass, one after the other.
WAITS = (2, 4, 8, 16, 32, 64, 128)
DOWNLOADS_AT_ONCE = 4


def fetch(name: str, revision: str, subset: str | None = None) -> tuple[str, list[Path]]:
    """The commit that `revision` stands for, and the files of the `train` split at that commit, on this disk.

    Args:
        name: the data set, such as Skylion007/openwebtext.
        revision: a branch, tag, commit, or refs/convert/parquet, where the hub keeps data sets it has converted.
        subset: one of the data set's configurations, where it has several.

    Raises:
        InputError: there is no such data set or revision, it needs a script, only part of it was converted, or the hub
            cannot be reached.
    """
    urls = list_files(name, revision, subset)
    places = [re.fullmatch(r"hf://datasets/([^@]+)@([^/]+)/(.+)", url) for url in urls]
    if not all(places):
        raise InputError(f"text.name: expected files of {name!r} on the hub, found {urls[0]}; use another data set")
    check_files(name, revision, [place[3] for place in places])
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        paths = list(pool.map(lambda place: download(*place.groups()), places))
    return places[0][2], paths


def list_files(name: str, revision: str, subset: str | None) -> list[str]:
    """Addresses of the files of the `train` split, the commit in them."""
    import datasets

    def resolve() -> dict:
        return datasets.load_dataset_builder(name, subset, revision=revision).config.data_files or {}

    try:
        splits = patiently(f"the list of files of {name}", resolve)
    except Exception as error:  # a wrong name, no network, a script, no data: many kinds of exception
        raise InputError(
            f"text.name: expected a data set of the hub, could not read {name!r} at {revision!r} ({one_line(error)}); "
            "check name, revision (refs/convert/parquet for one that has a script) and network"
        ) from None
    if "train" not in splits:
        raise InputError(
            f"text.name: expected a data set with a split train, found {', '.join(map(str, splits)) or 'no files'} in "
            f"{name!r}; use another"
        )
    return list(splits["train"])


def check_files(name: str, revision: str, files: list[str]) -> None:
    for file in files:
        # So the hub names what it converted of a data set that was too large for it.
        if "/partial-" in f"/{file}":
            raise InputError(
                f"text.revision: expected all of {name!r}, found only its first part ({file}) at {revision!r}; "
                "use main, or fetch the files and set text.source to files"
            )
        if not file.endswith(TEXT_SUFFIXES):
            raise InputError(
                f"text.name: expected files of {', '.join(TEXT_SUFFIXES)}, found {file} in {name!r}; try the revision "
                "refs/convert/parquet"
            )


def download(name: str, commit: str, file: str) -> Path:
    """The path of a file in the hub's cache, fetched if it is not there; an interrupted download goes on."""
    import huggingface_hub

    def get() -> str:
        return huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=commit)

    try:
        return Path(patiently(f"{file} of {name}", get))
    except Exception as error:  # as above, and a full disk
        raise InputError(
            f"text.name: expected to fetch {file} of {name!r} at {commit}, could not ({one_line(error)}); run again"
        ) from None


def patiently(what: str, action: Callable[[], Result]) -> Result:
    """The action's result; one that fails in a way that may pass is tried again, and what is waited for is said."""
    for wait in WAITS:
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            print(
                f"hub: waiting {wait} s for {what}: {one_line(error)}",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(wait)
    return action()


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: no connection, a timeout, too many requests, the server's fault."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return False
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code if cause.response is not None else 500
            return status == 429 or status >= 500
        if isinstance(cause, LocalEntryNotFoundError | httpx.TransportError | ConnectionError | TimeoutError):
            return True
    return False


def one_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:160] or type(error).__name__
