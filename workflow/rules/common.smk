# Config merged, read and checked once; folders; the checks before the first job. No rules here.
import atexit
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from krakenlm import config as settings
from krakenlm import plan, price, status
from krakenlm.errors import InputError
from krakenlm.files import claim, held_locks
from krakenlm.inference.tensorrt import available
from krakenlm.machine import count_gpus
from krakenlm.models import ARCHITECTURES
from krakenlm.tracking import folders

# Snakemake learns its executor only after it has read this file. A local one always has a number of cores; a cluster's
# profile has none, but in a dry run, and its jobs know themselves as such.
ON_CLUSTER = (
    workflow.remote_exec
    or workflow.resource_settings.cores is None
    or (
        plan.is_dry_run(sys.argv)
        and plan.executor(sys.argv, Path(workflow.main_snakefile).parent) != "local"
    )
)


def find_scale(wanted):
    """Name of the scale. `auto` is resolved once, by the process that the user started; its jobs inherit the answer."""
    if wanted != "auto":
        return wanted
    if ON_CLUSTER:
        raise InputError(
            "scale: expected a name, found auto, which every node of a cluster would resolve anew; "
            "add --config scale=paper (or single-gpu, tiny)"
        )
    return settings.auto_scale(main_process=workflow.is_main_process)


def load_config():
    """The configuration: the scale's file, over it config.yaml, over it --configfile, over it --config."""
    given = settings.merge(
        config, settings.read_scalars(workflow.config_settings.config)
    )
    scale = find_scale(given.get("scale", "auto"))
    return settings.load(given, scale, Path(workflow.basedir))


def announce(text):
    """Tell the person who started this; jobs parse this file too and stay silent."""
    if workflow.is_main_process:
        print(f"krakenlm: {text}", file=sys.stderr, flush=True)


def jobs_to_do():
    """(rule, wildcards) of each job that this run is to do, those that a dry run went through included."""
    waiting = workflow.dag.needrun_jobs(exclude_finished=False)
    return [(job.rule.name, dict(job.wildcards)) for job in waiting]


def announce_price(jobs):
    """Print what these jobs cost. Returns the checks that a run of them has to pass: each raises InputError."""
    devices = price.stated_devices(CONFIG)
    estimate = price.estimate(CONFIG, jobs, devices)
    if estimate:
        announce(price.describe(estimate, devices))
    free = shutil.disk_usage("results" if os.path.isdir("results") else ".").free
    checks = [
        lambda: plan.refuse_over_budget(estimate, devices, CONFIG, sys.argv),
        lambda: plan.refuse_missing_disk(estimate, free),
    ]
    if not ON_CLUSTER:
        checks += [
            lambda: plan.refuse_missing_tensorrt_llm(jobs, MISSING),
            lambda: plan.refuse_missing_devices(CONFIG, jobs, GPUS),
        ]
    return checks


def before_first_job(log):
    """What has to hold before anything runs: nobody else works here, the price is accepted, the devices are there."""
    global results_lock
    results_lock = claim("results/.lock", "snakemake")
    for holder in held_locks("results"):
        announce(f"{holder} is left from an earlier run; its stage waits for it here")
    jobs = jobs_to_do()
    for check in announce_price(jobs):
        check()
    if not ON_CLUSTER:
        for line in plan.missing_links(CONFIG, jobs):
            announce(line)
    if report_job() is not None:
        # Of an earlier failure.
        Path("results", status.REPORT_SO_FAR).unlink(missing_ok=True)
    record_jobs(log)


def after_dry_run():
    """Last of what a dry run prints: the price of the jobs it has listed, and what would keep them from starting."""
    if not (workflow.dryrun and workflow.dag and jobs_to_do()):
        return
    refusals = []
    try:
        for check in announce_price(jobs_to_do()):
            refusals += refusal(check)
    except InputError as error:  # no price can be told
        refusals.append(error)
    for error in refusals:
        announce(f"this run would not start: {error}")
    if not refusals:
        # No more than was checked: somebody else may be at work here when it starts.
        checked = (
            "the budget and the free disk"
            if ON_CLUSTER
            else "the budget, the free disk and the devices here"
        )
        announce(f"this run is within {checked}")


def refusal(check):
    """[the InputError of a check], or [] where it passes."""
    try:
        check()
    except InputError as error:
        return [error]
    return []


def record_jobs(log):
    """Leave what this run is to do where `krakenlm status` looks for it."""
    left, finished = [], []
    waiting = set(workflow.dag.needrun_jobs())
    whole = False
    for job in workflow.dag.jobs:
        whole = whole or job.rule.name == "all"
        if not job.output:  # `all`, which only names the others
            continue
        if job not in waiting:
            finished.append({"rule": job.rule.name, "output": str(job.output[0])})
        else:
            left.append(
                {
                    "id": workflow.dag.jobid(job),
                    "rule": job.rule.name,
                    "message": job.message or job.rule.name,
                    "output": str(job.output[0]),
                    "log": str(job.log[0]) if job.log else None,
                }
            )
    targets = "" if whole else " ".join(asked_for())
    made_from = report_inputs()
    status.record(Path("results"), SCALE, log, left, finished, targets, made_from)


def report_job():
    """The job that makes the report, done or not; None where this run is of other targets."""
    jobs = (job for job in workflow.dag.jobs if job.rule.name == "report_page")
    return next(jobs, None)


def report_inputs():
    """What the report of this run is made from, as status.record has it; None where the run makes no report."""
    page = report_job()
    if page is None:
        return None
    makers = {
        str(path): str(job.output[0])
        for job in workflow.dag.jobs
        for path in job.output
    }
    inputs = {}
    for name, files in page.input.items():
        files = [files] if isinstance(files, str) else files
        inputs[name] = {str(path): makers.get(str(path), str(path)) for path in files}
    return {
        "inputs": inputs,
        "config": json.loads(page.params.config),
        "run": page.params.run,
    }


def report_so_far():
    """After a failure: the page of what is there, of a run that was to make the report.

    By a process of its own, so that what goes wrong there is one line here. Its name is no rule's output: the report
    itself is still to be made.
    """
    if report_job() is None:
        return
    if workflow.storage_settings.default_storage_provider:
        return announce("no page of what is there: files are in a storage")
    program = "from krakenlm.cli import main; main()"
    try:
        # It waits while something is timed on this machine, which may be another folder's run of hours.
        run = subprocess.run(
            [sys.executable, "-c", program, "report-so-far"], timeout=120
        )
        written = run.returncode == 0
    except subprocess.TimeoutExpired:
        written = False
    if not written:
        announce("no page of what is there; `krakenlm report-so-far` tries again")


def asked_for():
    """Words of the command that say which part of the reproduction is wanted."""
    wanted = workflow.dag_settings
    words = sorted(wanted.targets)
    for option, names in {
        "--until": wanted.until,
        "--omit-from": wanted.omit_from,
    }.items():
        words += [option, *sorted(names)] if names else []
    return words


def tasks(model):
    """How many processes SLURM starts for a training; elsewhere one, which starts the others."""
    executor = workflow.executor_plugin.name if workflow.executor_plugin else ""
    on_slurm = executor.startswith("slurm") or (
        workflow.remote_exec and "SLURM_JOB_ID" in os.environ
    )
    return settings.devices(CONFIG, model) if on_slurm else 1


def find_engine():
    """(engine, what TensorRT-LLM lacks here). `auto` is resolved like the scale; on a cluster, whose nodes are not known
    here, it is the PyTorch engine.
    """
    if ON_CLUSTER:
        return ("torch" if CONFIG["engine"] == "auto" else CONFIG["engine"]), []
    environments = bool(workflow.deployment_settings.deployment_method)
    missing = available.missing(
        CONFIG["device"], settings.most_ranks(CONFIG), environments
    )
    return (
        settings.find_engine(CONFIG["engine"], missing, workflow.is_main_process),
        missing,
    )


def timing_gpus(tp):
    """GPUs of a timing job: this machine's, so that nothing runs beside it; on a cluster as many as it has ranks."""
    if ON_CLUSTER:
        return tp if CONFIG["device"] == "cuda" else None
    return GPUS or None


def model_folder(model, seed):
    return f"{model}/seed{seed}-{settings.model_fingerprint(CONFIG, model)}"


try:
    # The second with the models and sizes that were set to null: a --configfile that makes this run again.
    CONFIG, EVERYTHING = load_config()
except InputError as error:
    # Not Snakemake's WorkflowError, around which it prints lines of this file.
    sys.exit(f"krakenlm: {error}")

SCALE = CONFIG["scale"]
# Everything that a result can depend on; the group of all runs of one reproduction on W&B.
TEXT = settings.text_settings(CONFIG)
SHARDS = settings.shards(CONFIG["text"])
REPRODUCTION = settings.fingerprint(
    {key: value for key, value in CONFIG.items() if key not in ("budget", "wandb")}
    | {"text": TEXT}
)
CORPUS = settings.corpus_folder(CONFIG)
ROOT = f"results/{CORPUS}"
# Of the files of tasks and their scores; files of another one are made anew.
SUPERGLUE_FORMAT = 2
SUPERGLUE_HASH = settings.fingerprint(
    [CONFIG["evaluation"]["superglue"], SUPERGLUE_FORMAT]
)
TASKS = f"results/{SCALE}/tasks-{SUPERGLUE_HASH}"
SUPERGLUE_SOURCE = CONFIG["evaluation"]["superglue"]["source"]
# An official download's files: a change of them makes the tasks, and all scores, again.
SUPERGLUE_FILES = settings.superglue_files(CONFIG)
SUPERGLUE_SCORES = f"superglue-{SUPERGLUE_HASH}"
# With the device: what was timed on another one stays where it is, and is no answer here.
LATENCY = (
    f"{SCALE}/latency-{settings.fingerprint([CONFIG['latency'], CONFIG['device']])}"
)
SIMULATION = f"{SCALE}/simulation-{settings.fingerprint(CONFIG['simulation'])}"
SUPERGLUE = list(settings.SUPERGLUE_FOLDERS)
DATA = settings.data_label(TEXT)
MODELS = [model_folder(model, seed) for model, seed in settings.model_seeds(CONFIG)]
ENGINES = [
    f"{model_folder(model, seed)}/tp{settings.engine_tp(CONFIG, model)}"
    for model, seed in settings.model_seeds(CONFIG)
]
# Of the trained models' engines and samples, whose files and logs are another configuration's own.
ENGINE_TIMES = (
    f"engines-{settings.fingerprint([CONFIG['engines'], CONFIG['device'], MODELS])}"
)
SAMPLES = f"samples-{settings.fingerprint(MODELS)}"
GPUS = count_gpus() if CONFIG["device"] == "cuda" and not ON_CLUSTER else 0
if workflow.is_main_process and not ON_CLUSTER and not plan.is_dry_run(sys.argv):
    # Set nowhere else: Snakemake silently cuts a job's request to it.
    workflow.global_resources["gpu"] = GPUS
# Of one model's evaluation: a GPU for each rank.
EVALUATION_GPUS = CONFIG["evaluation"]["ranks"] if CONFIG["device"] == "cuda" else None
ENGINE, MISSING = find_engine()
TENSORRT_ARCHITECTURES = [
    name for name in CONFIG["latency"]["architectures"] if name in ARCHITECTURES
]
# One line for every rule's shell: empty here, `srun` or `mpirun -n K` from a cluster's profile.
LAUNCHER = ""


wildcard_constraints:
    seed=r"\d+",
    size=r"[^/]+",
    tp=r"\d+",
    hash="|".join(
        sorted(
            {settings.model_fingerprint(CONFIG, model) for model in CONFIG["models"]}
        )
    ),


os.environ.update(
    settings.stage_environment(CONFIG, REPRODUCTION, local=not ON_CLUSTER)
)
announce(
    f"scale {SCALE}, text {DATA}; others: "
    + ", ".join(f"--config scale={name}" for name in settings.SCALES if name != SCALE)
)
if CONFIG["engine"] == "auto":
    announce(f"engine {ENGINE}{available.explain(MISSING)}")
if workflow.is_main_process:
    # Snakemake has no hook for a dry run, whose jobs are known when it has listed them.
    atexit.register(after_dry_run)


onstart:
    if workflow.is_main_process:
        try:
            before_first_job(log[0])
        except InputError as error:
            sys.exit(f"krakenlm: {error}")


onsuccess:
    if workflow.is_main_process and folders.unsent(Path("results") / SCALE):
        announce(
            "W&B runs are kept offline; with a key, `krakenlm upload` sends them"
        )


onerror:
    if workflow.is_main_process:
        report_so_far()
