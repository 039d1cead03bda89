"""What was made from what: a line for each run and for each artifact that it read or wrote, beside W&B's run folders.

W&B takes no inputs of an offline run. So the chain from a table back to its corpus is kept here, and handed over when
the runs are uploaded.
"""

import fcntl
import json
import os
from pathlib import Path

RUN, READ, WROTE, LINKED = "run", "read", "wrote", "linked"


class Ledger:
    """`directory`/wandb/lineage.jsonl. Lines are only ever added; a later one outweighs an earlier one."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.path = self.directory / "wandb" / "lineage.jsonl"

    def add(self, what: str, run: str, **values: str) -> None:
        """Add a line, whole also when stages that run side by side add theirs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps({"what": what, "run": run} | values) + "\n")

    def lines(self, what: str) -> list[dict]:
        """Lines of one kind, oldest first; one that a crash cut off is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if value["what"] == what:
                found.append(value)
        return found

    def earlier_run(self, run: str, stage: str, name: str) -> str | None:
        """The last run of the same stage and name that had other parameters."""
        same = (line["run"] for line in reversed(self.lines(RUN)) if (line["stage"], line["name"]) == (stage, name))
        return next((other for other in same if other != run), None)

    def place(self, path: str | Path) -> str:
        """How a path stands in the ledger: relative to its directory, so that the folder can be moved."""
        return os.path.relpath(Path(path).resolve(), self.directory.resolve())

    def artifact_at(self, path: str | Path) -> dict | None:
        """The newest artifact that is `path`, or the folder it is in."""
        places = {line["path"]: line for line in self.lines(WROTE)}
        path = Path(path)
        return next((places[p] for p in map(self.place, (path, *path.resolve().parents)) if p in places), None)

    def unlinked(self) -> list[dict]:
        """What runs have read and W&B has not yet been told."""
        told = {(line["run"], line["artifact"], line["alias"]) for line in self.lines(LINKED)}
        lines = {(line["run"], line["artifact"], line["alias"]): line for line in self.lines(READ)}
        return [line for key, line in lines.items() if key not in told]
