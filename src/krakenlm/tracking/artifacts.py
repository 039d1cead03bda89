"""What a stage leaves on disk, as a W&B artifact.

Descriptions and tables are uploaded. Texts, tokens and weights never are: the artifact says where the file is, how
large it is and what its checksum is.
"""

import re
from pathlib import Path
from typing import Any

UPLOADED = (".json", ".csv", ".html")
UNFINISHED = ("checkpoints", "shards")
NAME_LENGTH = 128  # W&B's limit


def artifact_name(path: Path) -> str:
    """The path below results/<scale>/ in the characters that W&B allows; elsewhere the last part alone."""
    parts = path.resolve().parts
    if "results" in parts:
        below = parts[len(parts) - parts[::-1].index("results") :]
        parts = below[1:] or below
    else:
        parts = parts[-1:]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", ".".join(parts))[-NAME_LENGTH:]


def files_of(path: Path) -> list[Path]:
    """The file, or the folder's files; without hidden ones and what is kept for going on (`UNFINISHED`)."""
    if path.is_file():
        return [path]
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [
        file
        for file in found
        if not any(part.startswith(".") or part in UNFINISHED for part in file.relative_to(path).parts)
    ]


def make_artifact(path: Path, kind: str) -> Any:
    """A draft artifact of a file or folder, its digest that of the files' names and contents."""
    import wandb

    artifact = wandb.Artifact(artifact_name(path), type=kind)
    for file in files_of(path):
        name = file.name if file == path else file.relative_to(path).as_posix()
        if file.suffix in UPLOADED:
            artifact.add_file(str(file), name=name)
        else:
            artifact.add_reference(file.resolve().as_uri(), name=name)
    return artifact
