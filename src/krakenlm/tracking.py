"""Weights & Biases: every stage is a run. Whatever goes wrong in it costs one line on stderr, never the stage."""

import json
import netrc
import os
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from krakenlm.config import fingerprint

MODES = ("auto", "online", "offline", "disabled")
# Every metric's x axis is this one, logged with it: W&B's own step starts anew when a run is resumed.
STEP = "trainer/global_step"
INIT_SECONDS = 15.0
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
    after a kill goes on there too; other parameters make another run.

    Args:
        stage: what it does, such as `train`; W&B's job type. Training is watched by system metrics too.
        parameters: all that determines what comes out; W&B's config. Anything JSON can hold, and paths.
        directory: run folders go to `directory`/wandb.
        mode: auto (online with a key, else offline), online, offline or disabled; WANDB_MODE, else auto, unless given.
    """
    run = Run()
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
    options = {
        "id": fingerprint([group, stage, name, config], length=16),
        "project": os.environ.get("WANDB_PROJECT") or "krakenlm",
        "job_type": stage,
        "name": name,
        "group": group,
        "config": config,
        "tags": list(tags),
        "dir": str(directory),
        "resume": "allow",
    }
    run.open(options, mode, system_metrics=stage == "train")
    return run


class Run:
    """A stage's W&B run; without one (disabled, unavailable, broken, not the first process) every call does nothing."""

    def __init__(self) -> None:
        self.wandb_run: Any = None

    def open(self, options: dict, mode: str, system_metrics: bool) -> None:
        """Start the run; offline where online fails, not at all where that fails too."""
        if not self.attempt("start", set_up):
            return
        online = mode != "offline" and has_key()
        if mode == "online" and not online:
            self.warn("start online", "no key (WANDB_API_KEY or `wandb login`); going on offline")
        if online:
            if self.attempt("start online", lambda: self.init(options, "online", system_metrics), "offline"):
                return
            # W&B's own process still has the run's id from the attempt that failed.
            self.attempt("start", tear_down)
        self.attempt("start", lambda: self.init(options, "offline", system_metrics))

    def init(self, options: dict, mode: str, system_metrics: bool) -> None:
        import wandb

        Path(options["dir"]).mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_save_requirements=False,
            x_disable_stats=not system_metrics,
            x_disable_machine_info=not system_metrics,
            init_timeout=INIT_SECONDS,
            x_service_wait=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        run = wandb.init(**options, mode=mode, settings=settings)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        self.wandb_run = run

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values that have one x, `step`."""
        values = dict(metrics) if step is None else {**metrics, STEP: step}
        self.use("log", lambda run: run.log(values))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows as a W&B table; a key that a row lacks is empty there."""

        def log_table(run: Any) -> None:
            import wandb

            columns = list(dict.fromkeys(key for row in rows for key in row))
            data = [[row.get(column) for column in columns] for row in rows]
            # An unknown figure is an empty cell, so a column may hold text and numbers.
            run.log({name: wandb.Table(columns=columns, data=data, allow_mixed_types=True)})

        self.use(f"log table {name}", log_table)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set summary values of the run."""
        self.use("write summary", lambda run: run.summary.update(dict(values)))

    def lightning_logger(self) -> Any:
        """A Lightning WandbLogger on this run, as safe as the run itself; None without a run."""
        return None if self.wandb_run is None else make_lightning_logger(self)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.use("finish", lambda run: run.finish(exit_code=0 if error is None else 1))
        self.wandb_run = None

    def use(self, what: str, action: Callable[[Any], None]) -> None:
        """Do `action` with the W&B run, if there is one; after a failure there is none any more."""
        if self.wandb_run is not None and not self.attempt(what, lambda: action(self.wandb_run)):
            self.wandb_run = None

    def attempt(self, what: str, action: Callable[[], None], otherwise: str = "without") -> bool:
        try:
            action()
        except Exception as error:  # whatever W&B raises, the stage goes on
            self.warn(what, f"{type(error).__name__}: {error}; going on {otherwise}")
            return False
        return True

    @staticmethod
    def warn(what: str, problem: str) -> None:
        line = " ".join(problem.split())
        key = os.environ.get("WANDB_API_KEY")
        if key:
            line = line.replace(key, "<key>")
        print(f"krakenlm: W&B could not {what}: {line}", file=sys.stderr, flush=True)


def make_lightning_logger(run: Run) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    class SafeWandbLogger(WandbLogger):
        """Logs through `run`, so a failure of W&B costs a line there and not the training."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            run.log(metrics, step)

    return SafeWandbLogger(experiment=run.wandb_run, project=run.wandb_run.project)


def set_up() -> None:
    """Import W&B and start its process; quiet from here on, the reading of keys included."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))


def tear_down() -> None:
    import wandb

    wandb.teardown()
    set_up()


def has_key() -> bool:
    """Whether W&B's server would know us: WANDB_API_KEY, or a login in netrc."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    hosts = [urllib.parse.urlparse(wandb.setup().settings.base_url).hostname]
    if not os.environ.get("WANDB_BASE_URL"):
        hosts.append("api.wandb.ai")  # where logins were kept before the default server moved
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(logins.authenticators(host or "") for host in hosts)


def is_first_process() -> bool:
    """Whether this process speaks for a training that runs in several (Lightning, torchrun, SLURM)."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    return all(rank in ("", "0") for rank in ranks)
