"""A stage's W&B run. Whatever goes wrong in it costs one line on stderr, never the stage."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from krakenlm.config import fingerprint
from krakenlm.files import claim
from krakenlm.tracking import folders
from krakenlm.tracking.artifacts import artifact_name, make_artifact
from krakenlm.tracking.ledger import LINKED, READ, RUN, WROTE, Ledger
from krakenlm.tracking.service import has_ended, keys, set_up, start_anew, within
from krakenlm.version import code_version

MODES = ("auto", "online", "offline", "disabled")
# Every metric's x axis is this one, logged with it: W&B's own step starts anew when a run is resumed.
STEP = "trainer/global_step"
SERVICE_SECONDS = 60.0
INIT_SECONDS = 15.0
LINK_SECONDS = 15.0
FINISH_SECONDS = 60.0


def start_run(
    stage: str,
    *,
    name: str,
    group: str,
    parameters: Mapping,
    directory: str | Path,
    mode: str | None = None,
    tags: Sequence[str] = (),
) -> "Run":
    """Open the W&B run of a stage, to be used as a context manager.

    The same stage of the same group with the same name and parameters is the same run, so a stage that goes on
    after a kill goes on there too; other parameters make another run, whose config names the earlier one.

    Args:
        stage: what it does, such as `train`; W&B's job type.
        parameters: all that determines what comes out; W&B's config. Anything JSON can hold, and paths.
        directory: run folders go to `directory`/wandb.
        mode: auto (online with a key, else offline), online, offline or disabled; WANDB_MODE, else auto, unless given.
    """
    run = Run(Path(directory))
    if not is_first_process():
        return run
    mode = mode or os.environ.get("WANDB_MODE") or "auto"
    if mode not in MODES:
        run.warn("start", f"mode {mode!r} is none of {', '.join(MODES)}; going on without")
        return run
    if mode == "disabled":
        return run
    # A path is worth its text; so is anything else that JSON does not know.
    config = json.loads(json.dumps(dict(parameters), default=str))
    run_id = fingerprint([group, stage, name, config], length=16)
    # Not in the id: the same work done by other code, or after other work, is still the same run.
    config |= {"code": code_version(), "earlier_run": run.ledger.earlier_run(run_id, stage, name)}
    options = {
        "id": run_id,
        "project": default_project(),
        "job_type": stage,
        "name": name,
        "group": group,
        "config": {key: value for key, value in config.items() if value is not None},
        "tags": list(tags),
        "dir": str(directory),
        "resume": "allow",
    }
    run.open(options, mode)
    return run


class Run:
    """A stage's W&B run; without one (disabled, unavailable, broken, not the first process) every call does nothing."""

    def __init__(self, directory: Path) -> None:
        self.wandb_run: Any = None
        self.folder: Path | None = None
        self.lock: Any = None
        self.options: dict = {}
        self.ledger = Ledger(directory)
        self.secrets: list[str] = []
        self.first = 0  # the server has what was logged at the steps before this one
        self.earlier: list[Path] = []  # folders of an online run's earlier processes, whose rows it has taken over
        self.logged: dict[int, dict[str, float]] = {}  # each step's metrics in folders that are not uploaded yet
        # What this process has logged: W&B's own has up to 32 KB of it in its memory only, and takes it along when it
        # is killed.
        self.rows: dict[int, dict[str, Any]] = {}
        self.step: int | None = None  # the last one that something was logged at, here or by an earlier process
        self.calls: list[Callable[[Any], None]] = []

    @property
    def directory(self) -> Path:
        return self.ledger.directory

    def open(self, options: dict, mode: str) -> None:
        """Start the run; offline where online fails, not at all where that fails too."""
        self.options = options
        if not self.attempt("start", lambda: self.prepare(options["id"])):
            return
        online = mode != "offline" and bool(self.secrets)
        if mode == "online" and not online:
            self.warn("start online", "no key (WANDB_API_KEY or `wandb login`); going on offline")
        waiting = [folder for folder in folders.unsent(self.directory, options["id"]) if folders.is_offline(folder)]
        if online and waiting:
            # Its first part has to reach the server before the rest does.
            self.warn("start online", f"{waiting[0]} is not uploaded yet; going on offline (`krakenlm upload`)")
            online = False
        if not online:
            self.attempt("start", lambda: self.init("offline"))
        elif not self.attempt("start online", lambda: self.init("online"), "offline"):
            self.go_offline()
        if self.wandb_run is not None:
            line = {key: options[key] for key in ("name", "group", "project")}
            self.ledger.add(RUN, options["id"], stage=options["job_type"], **line)

    def prepare(self, run_id: str) -> None:
        """Be this run's only process, on W&B started as we need it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.lock = claim(lock_path(self.directory, run_id), f"process of run {run_id}")
        set_up(self.directory)
        self.secrets = keys()

    def go_offline(self, lost: bool = False) -> bool:
        """Go on in a run folder of its own, which the upload joins to what was sent before.

        Args:
            lost: whether W&B's own process was killed, so that what it had is to be logged anew.
        """

        def reopen() -> None:
            if self.wandb_run is not None:
                with contextlib.suppress(Exception):  # what does not arrive now is on the disk, or logged anew
                    self.wandb_run.finish()
            # W&B's own process still has the run's id.
            start_anew()
            self.settle()
            self.init("offline")
            if lost:
                self.repeat()

        return self.attempt("go on offline", reopen)

    def init(self, mode: str) -> None:
        import wandb

        earlier = folders.unsent(self.directory, self.options["id"])
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_save_requirements=False,
            init_timeout=INIT_SECONDS,
            x_service_wait=SERVICE_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        run = wandb.init(**self.options, mode=mode, settings=settings)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        self.wandb_run, self.folder = run, Path(run.dir).parent
        self.logged = folders.logged(earlier, STEP)
        if not run.offline:
            self.take_over(earlier)

    def take_over(self, earlier: list[Path]) -> None:
        """Log what folders of earlier processes hold and the server has not got: they will not be sent themselves."""
        # Rows arrive in order; W&B goes on after the last one that did.
        self.first, self.earlier = self.wandb_run.starting_step, earlier
        self.logged = {step: row for step, row in self.logged.items() if step >= self.first}
        for step, row in sorted(self.logged.items()):
            self.rows[step] = dict(row)
            self.wandb_run.log({**row, STEP: step}, step=step)

    def settle(self) -> None:
        """Earlier folders whose rows are in this online run's folder, which is to be sent, need no upload."""
        if self.earlier and folders.cover(folders.logged([self.folder], STEP), self.logged):
            folders.mark_sent(self.earlier)
        self.earlier = []

    def repeat(self) -> None:
        """Do again what the run folders do not show; of tables and artifacts, whose newest counts, all."""
        for step, row in sorted(self.rows.items()):
            missing = {name: value for name, value in row.items() if name not in self.logged.get(step, ())}
            if missing:
                self.wandb_run.log({**missing, STEP: step}, step=step)
        for action in self.calls:
            action(self.wandb_run)

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values that have one x, `step`; those that an earlier process of this run has logged are left out."""
        if step is None:
            self.use("log", lambda run: run.log(dict(metrics)))
            return
        self.step = step
        values = {key: value for key, value in metrics.items() if key not in self.logged.get(step, ())}
        if values and step >= self.first:
            self.rows.setdefault(step, {}).update(values)
            self.use("log", lambda run: run.log({**values, STEP: step}, step=step), once=True)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows as a W&B table; a key that a row lacks is empty there."""
        self.use(f"log table {name}", lambda run: run.log({name: make_table(rows)} | self.last_step()))

    def bars(self, name: str, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], value: str) -> None:
        """Log a bar chart of the column `value`; each bar is called what its row has in the columns `labels`."""

        def log_bars(run: Any) -> None:
            import wandb

            bars = [{"row": ", ".join(str(row[label]) for label in labels), value: row[value]} for row in rows]
            run.log({f"{name} chart": wandb.plot.bar(make_table(bars), "row", value, title=name)} | self.last_step())

        self.use(f"log chart {name}", log_bars)

    def lines(self, name: str, rows: Sequence[Mapping[str, Any]], x: str, value: str, labels: Sequence[str]) -> None:
        """Log a line chart of the column `value` over the column `x`, a line for each of what stands in `labels`."""

        def log_lines(run: Any) -> None:
            import wandb

            points = [
                {x: row[x], value: row[value], "line": ", ".join(str(row[label]) for label in labels)} for row in rows
            ]
            chart = wandb.plot.line(make_table(points), x, value, stroke="line", title=f"{name} over {x}")
            run.log({f"{name} over {x}": chart} | self.last_step())

        self.use(f"log chart {name}", log_lines)

    def last_step(self) -> dict[str, int]:
        """What a row needs beside what has no step of its own: in a run that goes on, W&B would have it be step 0."""
        return {} if self.step is None else {STEP: self.step}

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set summary values of the run."""
        self.use("write summary", lambda run: run.summary.update(dict(values)))

    def read(self, path: str | Path) -> None:
        """Say that the stage reads what an earlier run left at `path`; what no run left there is not mentioned.

        The inputs of an offline run, and those that the server does not have yet, are tied to it by `krakenlm upload`.
        """

        def declare(run: Any) -> None:
            artifact = self.ledger.artifact_at(path)
            if artifact is None:
                return
            line = {key: artifact[key] for key in ("artifact", "alias")}
            self.ledger.add(READ, run.id, **line)
            if not run.offline:
                name = f"{line['artifact']}:{line['alias']}"
                if self.attempt(f"link {name}", lambda: within(LINK_SECONDS, lambda: run.use_artifact(name))):
                    self.ledger.add(LINKED, run.id, **line)

        self.use(f"link {path}", declare)

    def wrote(self, path: str | Path, kind: str) -> None:
        """Log what the stage has written, a file or a folder, as an artifact of this kind."""

        def log_artifact(run: Any) -> None:
            artifact = make_artifact(Path(path), kind)
            line = {"artifact": artifact_name(Path(path)), "alias": artifact.digest, "kind": kind}
            run.log_artifact(artifact, aliases=["latest", line["alias"]])
            self.ledger.add(WROTE, run.id, path=self.ledger.place(path), **line)

        self.use(f"log {path}", log_artifact)

    def lightning_logger(self) -> Any:
        """A Lightning WandbLogger on this run, as safe as the run itself; None without a run."""
        return None if self.wandb_run is None else make_lightning_logger(self)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.use("finish", lambda run: self.finish(run, failed=error is not None), once=True, online=False)
        self.wandb_run = None
        if self.lock is not None:
            self.lock.close()

    def finish(self, run: Any, failed: bool) -> None:
        online = not run.offline
        run.finish(exit_code=1 if failed else 0)
        if online:
            # The parts that broke off before it are in it.
            folders.mark_sent(folders.run_folders(self.directory, run.id))

    def use(self, what: str, action: Callable[[Any], None], once: bool = False, online: bool = True) -> None:
        """Do `action` with the W&B run, if there is one; where that fails, on an offline one, or there is none after.

        Args:
            once: not to be done again when W&B's own process was killed after it.
            online: whether a failure of the server, too, makes the run an offline one.
        """
        if self.wandb_run is None:
            return
        try:
            action(self.wandb_run)
        except Exception as error:  # whatever W&B raises, the stage goes on
            lost = has_ended()
            again = lost or (online and not self.wandb_run.offline)
            self.report(what, error, "offline" if again else "without")
            if not (again and self.go_offline(lost) and self.attempt(what, lambda: action(self.wandb_run))):
                self.wandb_run = None
                return
        if not once:
            self.calls.append(action)

    def attempt(self, what: str, action: Callable[[], None], otherwise: str = "without") -> bool:
        try:
            action()
        except Exception as error:  # whatever W&B raises, the stage goes on
            self.report(what, error, otherwise)
            return False
        return True

    def report(self, what: str, error: Exception, otherwise: str) -> None:
        kept = f"; `krakenlm upload` sends what is kept in {self.folder}" if self.folder else ""
        self.warn(what, f"{type(error).__name__}: {error}; going on {otherwise}{kept}")

    def warn(self, what: str, problem: str) -> None:
        line = " ".join(problem.split())
        for secret in filter(None, [*self.secrets, os.environ.get("WANDB_API_KEY")]):
            line = line.replace(secret, "<key>")
        print(f"krakenlm: W&B could not {what}: {line}", file=sys.stderr, flush=True)


def make_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = [[row.get(column) for column in columns] for row in rows]
    # An unknown figure is an empty cell, so a column may hold text and numbers.
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def make_lightning_logger(run: Run) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    class SafeWandbLogger(WandbLogger):
        """Logs through `run`, so a failure of W&B costs a line there and not the training."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            run.log(metrics, step)

    return SafeWandbLogger(experiment=run.wandb_run, project=run.wandb_run.project)


def default_project() -> str:
    return os.environ.get("WANDB_PROJECT") or "krakenlm"


def lock_path(directory: Path, run_id: str) -> Path:
    """Held for as long as a process writes to the run."""
    return directory / "wandb" / f"{run_id}.lock"


def is_first_process() -> bool:
    """Whether this process speaks for a training that runs in several (Lightning, torchrun, SLURM)."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    return all(rank in ("", "0") for rank in ranks)
