"""A W&B workspace for the project: a section for each stage, with the panels that its runs fill."""

from pathlib import Path
from typing import Any

from krakenlm.errors import InputError
from krakenlm.tracking.ledger import RUN, Ledger
from krakenlm.tracking.run import STEP, default_project
from krakenlm.tracking.service import hide_keys, keys, set_up, within
from krakenlm.tracking.upload import directories

WORKSPACE = "krakenlm"
VIEW = f"nw-{WORKSPACE}-v"  # its name on the server, by which the next call finds it; W&B's own have letters by chance
SAVE_SECONDS = 60.0
TRAINING = {
    "Loss": ["train/loss", "validation/loss"],
    "Perplexity": ["train/perplexity", "validation/perplexity"],
    "Learning rate": ["train/learning_rate"],
    "Gradient norm": ["train/gradient_norm"],
    "Tokens per second": ["train/tokens_per_second"],
    "Share of the matrix rate": ["train/share_of_matrix_rate"],
    "Peak memory, GB": ["train/peak_memory_gb"],
}
# Tasks and their metrics as `krakenlm superglue` names them; to import them from there takes seconds.
SCORES = {
    "boolq": ("acc",),
    "cb": ("acc", "f1"),
    "copa": ("acc",),
    "multirc": ("acc", "acc (corrected)"),
    "record": ("f1", "em"),
    "rte": ("acc",),
    "wic": ("acc",),
    "wsc": ("acc",),
}
# Panels of values in summaries.
BARS = {
    "Text": {
        "Documents": ["documents"],
        "Bytes of text": ["bytes"],
        "Documents of each split": ["splits.train.documents", "splits.val.documents"],
        "Tokens": ["splits.train.tokens", "splits.val.tokens"],
    },
    "Evaluation": {f"Evaluation: {key}": [f"evaluation/{key}"] for key in ("loss", "perplexity", "bits_per_byte")}
    | {f"Score: {task}": [f"superglue/{task}/{metric}" for metric in SCORES[task]] for task in SCORES},
    "Shards": {"Ranks": ["shards/ranks"], "Bytes of the largest rank's file": ["shards/largest_file_bytes"]},
}
# Keys of tables (`Run.table`). Charts get panels of their own from W&B.
TABLES = {
    "Evaluation": ("perplexity", "superglue", "comparisons"),
    "Engines": ("engines",),
    "Samples": ("samples",),
    "Time to first token": ("ttft",),
    "Simulated time to first token": ("ttft_simulated",),
}
SECTIONS = tuple(dict.fromkeys(["Text", "Training", *BARS, *TABLES]))


def create(results: Path) -> str:
    """Make the project's workspace, or bring the one that an earlier call made up to date; returns its address.

    Args:
        results: where W&B's run folders are, for the advice that is given without a key.

    Raises:
        InputError: there is no key, or the server does not take the workspace.
    """
    set_up(results)
    if not keys():
        runs = [place for place in directories(results) if Ledger(place).path.exists()]
        places = " or ".join(f"`wandb leet {place / 'wandb'}`" for place in runs)
        raise InputError(
            "dashboard: expected a W&B key (WANDB_API_KEY or `wandb login`), found none; without one, "
            f"{places or '`wandb leet results/<scale>/wandb`'} shows the runs of this disk, also while they run"
        )
    try:
        address: list[str] = []
        within(SAVE_SECONDS, lambda: address.append(save(project_of(results))))
        return address[0]
    except Exception as error:  # whatever W&B raises, it is the server that would not have it
        problem = hide_keys(" ".join(str(error).split()))
        raise InputError(
            f"dashboard: expected W&B's server to take a workspace, found {type(error).__name__}: {problem}; "
            "try again, or look at the project's own page"
        ) from None


def project_of(results: Path) -> str:
    """The project of the newest run on this disk; without one that of a run to come."""
    ledgers = [ledger for ledger in map(Ledger, directories(results)) if ledger.path.exists()]
    ledgers.sort(key=lambda ledger: ledger.path.stat().st_mtime)
    found = [line["project"] for ledger in ledgers for line in ledger.lines(RUN) if "project" in line]
    return found[-1] if found else default_project()


def save(project: str) -> str:
    import wandb
    import wandb_workspaces.workspaces as ws

    entity = wandb.Api().default_entity
    workspace = ws.Workspace(entity=entity, project=project, name=WORKSPACE, auto_generate_panels=True)
    workspace._internal_name = VIEW
    try:
        workspace = ws.Workspace.from_url(workspace.url)
    except ValueError as error:  # also raised for no such project, and for a workspace that cannot be read
        if " not found in project " not in str(error):
            raise
    ours = sections()
    names = {section.name for section in ours}
    workspace.sections = ours + [section for section in workspace.sections if section.name not in names]
    return workspace.save().url


def sections() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    panels: dict[str, list] = {name: [] for name in SECTIONS}
    panels["Training"] += [wr.LinePlot(title=title, x=STEP, y=metrics) for title, metrics in TRAINING.items()]
    for name, bars in BARS.items():
        panels[name] += [wr.BarPlot(title=title, metrics=metrics) for title, metrics in bars.items()]
    for name, tables in TABLES.items():
        panels[name] += [wr.WeavePanelSummaryTable(table_name=table) for table in tables]
    return [ws.Section(name=name, panels=shown, is_open=True) for name, shown in panels.items()]
