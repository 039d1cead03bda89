"""Every command that README and docs show is one that works.

Commands are what stands in indented or fenced blocks whose first line begins with a known program. In `make test` each
is held against the program's own options and, for Snakemake, the configuration's checks. `make test-all` runs them too:
`krakenlm` in a folder where the miniature has run, `snakemake` as a dry run. What neither can do is in ELSEWHERE, with
what it needs.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers
import typer
import yaml

from krakenlm import config as settings
from krakenlm.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("make", "snakemake", "krakenlm", "python", "pytest", "wandb", ".", "export", "pip", "docker", "mpirun")
# What a command begins with (or has in it) -> what it needs that no test has.
ELSEWHERE = {
    "docker ": "a container registry",
    "pip install": "a package index; a package of a cluster or of one comparison",
    "mpirun ": "GPUs and TensorRT-LLM",
    "python -m krakenlm.inference.tensorrt.build": "a GPU and TensorRT-LLM",
    "krakenlm plan --scale single-gpu --measure": "a GPU",
    "krakenlm dashboard": "a key of W&B; tests/tracking makes one on a stand-in",
    "krakenlm upload": "a key of W&B; tests/tracking uploads to a stand-in",
    "krakenlm import authors": "a checkpoint of the authors; tests/models imports one that is made alike",
    "krakenlm lm-eval": "a task of the hub; tests/evaluation runs it on local ones",
    "krakenlm hardware import": "a clone of aiconfigurator; tests/latency reads a small one",
    "krakenlm hardware calibrate": "minutes alone on the machine; tests/latency runs its parts",
    "--profile profiles/tensorrt-llm": "conda",
    "--workflow-profile profiles/kubernetes": "a plugin that the page installs",
}
# The architecture that a page adds to the registry: tests/test_own_architecture.py runs it.
OWN_ARCHITECTURE = "staggered"
# Words that stand for something of the reader's -> what stands there in the folder of the test.
PLACEHOLDERS = {
    "MODEL": "results/tiny/*/models/kraken-2way/seed0-*",
    "$MODEL": "results/tiny/*/models/kraken-2way/seed0-*",
    "FOLDER_OR_HUB_NAME": "gpt2",
    "results/<scale>/<corpus>/tokens": "results/tiny/*/tokens",
}


class Shown(NamedTuple):
    """A command as a page shows it, comments left out."""

    page: str
    line: str


def blocks(text: str) -> Iterator[list[str]]:
    """Lines of each fenced block without a language other than bash's, and of each block indented by four."""
    fenced, kept, language = False, [], ""
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("```"):
            if fenced and language in ("", "bash", "sh", "console"):
                yield kept
            fenced, kept, language = not fenced, [], line.strip().removeprefix("```")
        elif fenced:
            kept.append(line)
        elif line.startswith("    "):
            kept.append(line[4:])
        elif kept:
            yield kept
            kept = []


def commands(page: Path) -> list[Shown]:
    """The page's commands, in order; continued lines and lines within quotes joined."""
    found = []
    for block in blocks(page.read_text()):
        if block[0].startswith("$ "):
            block = [line[2:] for line in block if line.startswith("$ ")]
        if not block[0].strip() or block[0].split()[0] not in PROGRAMS:
            continue
        pending = ""
        for line in block:
            pending = f"{pending}\n{line}" if pending else line
            if line.endswith("\\"):
                pending = pending[:-1]
                continue
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # an open quote: the next line goes on
                continue
            if words and "..." not in words:  # of a log, shortened
                for part in without_comment(pending).split(" && "):
                    found.append(Shown(str(page.relative_to(ROOT)), " ".join(part.split())))
            pending = ""
        assert not pending, f"{page.name}: expected the end of {pending!r}"
    return found


def without_comment(line: str) -> str:
    """Cut at the first ` #` outside of quotes."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and line[place - 1 : place].isspace():
            return line[:place]
    return line


SHOWN = [command for page in PAGES for command in commands(page)]
UNIQUE = list({command.line: command for command in SHOWN}.values())


def needs(line: str) -> str:
    """What the command needs that no test has; empty where it can be run here."""
    return next((need for words, need in ELSEWHERE.items() if words in line), "")


def check_make(words: list[str]) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(words) <= set(targets)


def check_krakenlm(words: list[str]) -> None:
    command, name = typer.main.get_command(app), "krakenlm"
    while hasattr(command, "commands"):
        if words == ["--help"]:
            return
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


def check_snakemake(words: list[str]) -> None:
    """Options as Snakemake parses them; profiles and files that exist; the configuration as the Snakefile checks it."""
    from snakemake.cli import get_argument_parser, parse_config

    found = get_argument_parser().parse_args(words)
    for profile in [*(found.profile or []), *([found.workflow_profile] if found.workflow_profile else [])]:
        assert (ROOT / profile / "config.yaml").is_file()
    rules = "".join(path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")])
    for target in found.targets:
        assert f'"{target}"' in rules or f"rule {target}:" in rules, target
    if OWN_ARCHITECTURE in " ".join(words):
        return
    given = settings.own_config()
    for path in found.configfile or []:
        given = settings.merge(given, yaml.safe_load((ROOT / path).read_text()))
    given = settings.merge(given, settings.read_scalars(parse_config(found.config)))
    scale = settings.resolve_scale(given["scale"], gpus=0)
    settings.load(given, scale, ROOT)


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1])
    else:
        compile((ROOT / words[0]).read_text(), words[0], "exec")


def check_wandb(words: list[str]) -> None:
    from wandb.cli.cli import cli

    assert words[0] in cli.commands


CHECKS = {
    "make": check_make,
    "krakenlm": check_krakenlm,
    "snakemake": check_snakemake,
    "python": check_python,
    "wandb": check_wandb,
    "pytest": lambda words: check_exists([word for word in words if not word.startswith("-")]),
    ".": lambda words: check_exists([]) if words == [".venv/bin/activate"] else check_exists(words),
    "export": lambda words: None,
}


def check_exists(paths: list[str]) -> None:
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.fixture(scope="module")
def prepared(checkouts):
    """A checkout with the files that pages name as the reader's own."""
    folder = checkouts("documented").folder
    for name in ("benchmarks", "src"):
        (folder / name).symlink_to(ROOT / name)
    prepare(folder)
    return folder


def prepare(folder: Path) -> None:
    """The reader's own files: texts, tokens of nanoGPT, a GPT-2 of Hugging Face, a checkpoint of the authors."""
    lines = "".join(f"The number {n} comes before the number {n + 1}.\n" for n in range(500))
    for name in ("my.txt", "texts/one.txt", "wikitext-2/valid.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(lines)
    for model in ("MODEL", "$MODEL", "models/gpt2"):
        (folder / model).mkdir(parents=True)
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c.jsonl.zst").write_bytes(
        b"never read: what is looked at before the first job is that there is a file"
    )
    tokens = folder / "nanoGPT" / "data" / "openwebtext"
    tokens.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        (tokens / name).write_bytes(bytes(2048))


@pytest.mark.parametrize("command", UNIQUE, ids=lambda command: f"{command.page}: {command.line[:90]}")
def test_a_command_is_one_that_its_program_takes(command, prepared, monkeypatch):
    program, *words = shlex.split(command.line)
    assert program in PROGRAMS, f"{command.page}: expected one of {', '.join(PROGRAMS)}, found {program!r}"
    if program not in CHECKS:
        assert needs(command.line), f"{command.page}: {program} is neither checked nor in ELSEWHERE"
        return
    monkeypatch.chdir(prepared)
    CHECKS[program](words)


def test_the_pages_have_the_commands_that_this_file_thinks_they_have():
    lines = [command.line for command in SHOWN]
    assert "make reproduce" in lines
    assert any(line.startswith("krakenlm ttft mine") and '"seed": 0}' in line for line in lines)
    assert all(any(words in line for line in lines) for words in ELSEWHERE), "an entry of ELSEWHERE is shown nowhere"


def own_gpt2(folder: Path, tokenizer: Path) -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 512, "n_positions": 128}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder / "gpt2")
    shutil.copy(tokenizer, folder / "gpt2")


def runs_here(line: str) -> bool:
    """Whether the command is a `krakenlm` one without a gap (`...`) that a reader has to fill."""
    return line.startswith("krakenlm ") and not needs(line) and "..." not in line and OWN_ARCHITECTURE not in line


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({command.page for command in UNIQUE if runs_here(command.line)}))
def test_the_pages_krakenlm_commands_run_where_the_pipeline_has_run(page, checkouts, finished):
    folder = checkouts("documented").folder
    shutil.copytree(finished.folder / "results", folder / "results", ignore=shutil.ignore_patterns("wandb", "*.lock"))
    own_gpt2(folder, next(folder.glob("results/tiny/*/tokenizer.json")))
    for line in [command.line for command in UNIQUE if command.page == page and runs_here(command.line)]:
        run = in_bash(line, folder)
        assert run.returncode == 0, f"{line}\n{run.stdout}"


def lists_its_jobs(line: str) -> bool:
    """Whether a dry run of the command shows something: a report needs results, a new architecture its file."""
    return line.startswith("snakemake") and not needs(line) and "--report" not in line and OWN_ARCHITECTURE not in line


@pytest.mark.slow
@pytest.mark.parametrize("line", [command.line for command in UNIQUE if lists_its_jobs(command.line)])
def test_a_snakemake_command_lists_its_jobs(line, prepared):
    run = in_bash(f"{line} --dry-run", prepared)
    assert run.returncode == 0, run.stdout


def in_bash(line: str, folder: Path) -> subprocess.CompletedProcess:
    for word, meaning in PLACEHOLDERS.items():
        line = re.sub(rf"(?<!\S){re.escape(word)}(?!\S)", meaning, line)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=os.environ | {"PATH": path, "WANDB_MODE": "disabled"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
