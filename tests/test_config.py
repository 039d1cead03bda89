import copy
import hashlib
from pathlib import Path

import pytest
import yaml

from krakenlm import config, plan
from krakenlm.config.text import check_text
from krakenlm.errors import InputError
from krakenlm.price import Cost

ROOT = Path(__file__).parent.parent
SCALES = ROOT / "config" / "scales"


@pytest.fixture
def tiny():
    base = yaml.safe_load((SCALES / "tiny.yaml").read_text())
    return config.merge(base, yaml.safe_load((ROOT / "config" / "config.yaml").read_text())) | {"scale": "tiny"}


@pytest.mark.parametrize("scale", ["tiny", "single-gpu", "paper"])
def test_every_scale_passes_the_checks(scale):
    base = yaml.safe_load((SCALES / f"{scale}.yaml").read_text())
    config.check(config.merge(base, yaml.safe_load((ROOT / "config" / "config.yaml").read_text())))


@pytest.mark.parametrize(
    ("gpus", "scale"), [(0, "tiny"), (1, "single-gpu"), (3, "single-gpu"), (4, "paper"), (8, "paper")]
)
def test_auto_follows_the_number_of_gpus(gpus, scale):
    assert config.resolve_scale("auto", gpus) == scale
    assert config.resolve_scale("tiny", gpus) == "tiny"


def test_a_later_place_wins_key_by_key_and_null_leaves_a_model_out():
    base = {"training": {"steps": 1, "clip": 1.0}, "models": {"a": {"width": 1}, "b": {"width": 2}}}
    merged = config.without_nulls(
        config.merge(base, {"training": {"steps": 2}, "models": {"a": None, "b": {"width": 3}}})
    )
    assert merged == {"training": {"steps": 2, "clip": 1.0}, "models": {"b": {"width": 3}}}


def test_strings_of_the_command_line_become_what_was_typed():
    typed = {"training": {"steps": "5", "learning_rate": "1e-3", "compile": "true"}, "seeds": ["0", "1"]}
    typed |= {"x": "y", "name": "@team", "day": "2026-11-23", "much": "nan", "nothing": "null"}
    assert config.read_scalars(typed) == {
        "training": {"steps": 5, "learning_rate": 1e-3, "compile": True},
        "seeds": [0, 1],
        "x": "y",
        "name": "@team",
        "day": "2026-11-23",
        "much": "nan",
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"models": {"kraken-4way": {"n_head": 6}}}, r"models.kraken-4way.n_head: .*degree \(4\).*found 6"),
        ({"simulation": {"hardware": ["tpu"]}}, r"simulation.hardware\[0\]: expected one of a100-40gb.*found 'tpu'"),
        ({"models": {"standard": {"width": 130}}}, r"models.standard.width: .*found 130; the nearest is 128"),
        ({"models": {"standard": {"degree": 2}}}, r"models.standard.degree: expected none for architecture standard"),
        ({"models": {"x": {"architecture": "standard"}}}, r"models.x.n_layer: expected a value, found none"),
        ({"models": {"x": {"from": "gpt2", "width": 8}}}, r"models.x.width: expected none beside from, found 8"),
        ({"models": {"x": {"from": "./nowhere"}}}, r"models.x.from: expected a path that exists or a name on the hub"),
        ({"models": {"x": {"from": "nowhere"}}}, r"models.x.from: expected a path that exists or .* found nowhere;"),
        ({"models": {"x": {"from": "config/nowhere"}}}, r"models.x.from: expected a path that exists or a name on"),
        ({"text": {"tokenizer": "nowhere.json"}}, r"text.tokenizer: expected gpt2, a path that .* found nowhere.json"),
        ({"text": {"words": 5}}, r"text.words: expected enough for a window of block_size \(128 tokens\) and, held"),
        ({"text": {"words": 200}}, r"text.words: expected .* found about 240 bytes for 512 tokens; give more text"),
        ({"models": {"x": {"from": str(ROOT)}}}, r"models.x.from: .* found .* without a config.json"),
        ({"training": {"micro_batch": 7}}, r"training.batch_sequences: expected a multiple.*nearest are 7 and 14"),
        ({"training": {"gpus": 3, "micro_batch": 1}}, r"training.gpus: .*divides the 8 micro-batches.*: 2 and 4$"),
        ({"training": {"warmup_steps": 10**6}}, r"training.warmup_steps: expected 0 to below steps"),
        ({"text": {"source": "files"}}, r"text.files: expected a value for text.source 'files'"),
        ({"text": {"source": "files", "files": [str(ROOT / "envs")]}}, r"text.files\[0\]: .*found no file at"),
        (
            {"text": {"source": "files", "files": [__file__]}},
            r"text.files\[0\]: expected one of .txt, .txt.gz, ",
        ),
        ({"text": {"source": "files", "files": ["nowhere.txt"]}}, r"text.files\[0\]: .*found no file at nowhere.txt"),
        ({"latency": {"runs": 26}}, r"latency.runs: expected latency.most_runs \(\d+\) at most, found 26"),
        ({"latency": {"tp": [3]}}, r"latency.sizes.width-512.n_head: expected a multiple of every latency.tp"),
        ({"engines": {"prompt_tokens": 4096}}, r"engines: expected prompt_tokens \+ new_tokens within block_size"),
    ],
)
def test_keys_that_do_not_fit_are_named(tiny, change, line):
    tiny["training"] |= {"batch_sequences": 8, "micro_batch": 8}
    with pytest.raises(InputError, match=line):
        config.check(config.merge(tiny, change))


def test_names_on_the_hub_are_told_from_paths_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("gpt2", "gpt2-xl", "gpt2@main", "openai-community/gpt2", "EleutherAI/gpt-neo@abc"):
        assert config.is_hub_name(name), name
    for name in ("nowhere", "./gpt2", "/no/gpt2", "~/no/gpt2", "models/gpt2", "a/b/c", "tokenizer.json"):
        assert not config.is_hub_name(name), name


def test_only_what_looks_like_a_path_is_no_tokenizer_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google").mkdir()
    for name in ("t5-small", "google/byt5-small", "Qwen/Qwen2.5-0.5B", "gpt2"):
        check_text({"source": "embedded", "words": 9, "tokenizer": name})
    for name in (
        "./gpt2",
        "/nowhere/gpt2",
        "~/nowhere/gpt2",
        "a/b/c",
        "tokenizer.json",
        "google/tokenizer.json",
        "nowhere/",
    ):
        with pytest.raises(InputError, match=rf"^text.tokenizer: expected gpt2, a path .* found {name}; correct it"):
            check_text({"source": "embedded", "words": 9, "tokenizer": name})


def test_files_with_fewer_bytes_than_the_tokens_that_are_needed_are_refused(tiny, tmp_path):
    text = {"source": "files", "files": [str(tmp_path / "short.txt")]}
    (tmp_path / "short.txt").write_text("x" * (8 * 64 + 128 - 1))
    with pytest.raises(InputError, match=r"text.files: expected enough .* found about 639 bytes for 640 tokens"):
        config.check(config.merge(tiny, {"text": text}))
    (tmp_path / "short.txt").write_text("x" * (8 * 64 + 128))
    config.check(config.merge(tiny, {"text": text}))


def test_superglues_own_texts_need_all_their_files_and_a_block_that_answers_fit(tiny, tmp_path):
    official = {"source": "official", "folder": str(tmp_path)}
    tiny["evaluation"]["superglue"] = official
    for folder in list(config.SUPERGLUE_FOLDERS.values())[:-1]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "val.jsonl").touch()
    with pytest.raises(InputError, match=r"evaluation.superglue.folder: .* found no .*WSC/val.jsonl"):
        config.check(tiny)
    (tmp_path / "WSC").mkdir()
    (tmp_path / "WSC" / "val.jsonl").touch()
    for source in (official, {"source": "hub"}):
        tiny["evaluation"]["superglue"] = source
        with pytest.raises(InputError, match=r"block_size: expected 512 at least for .* found 128; set block_size"):
            config.check(tiny)
        config.check(tiny | {"block_size": 512})


def load_with(line):
    """The tiny scale's configuration with a line below `training`."""
    own = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    return config.load(config.merge(own, {"training": yaml.safe_load(line)}), "tiny", ROOT)[0]


@pytest.mark.parametrize(
    ("key", "written", "hint"),
    [
        ("learning_rate", "2e-4", "write 2.0e-4"),
        ("learning_rate", "1E5", "write 1.0e+5"),
        ("learning_rate", "'3'", "write 3, without quotes"),
        ("steps", "1e3", "write 1000"),
        ("steps", "'700.0'", "write 700"),
        ("steps", "'700'", "write 700, without quotes"),
    ],
)
def test_a_number_that_yaml_reads_as_text_is_shown_as_the_configuration_takes_it(key, written, hint):
    with pytest.raises(InputError, match=rf"^training.{key}: expected a value of type \w+, found '") as line:
        load_with(f"{key}: {written}")
    assert str(line.value).endswith(f"; {hint}")
    corrected = hint.removeprefix("write ").partition(",")[0]
    assert load_with(f"{key}: {corrected}")["training"][key] == float(written.strip("'"))


@pytest.mark.parametrize("line", ["steps: 'true'", "steps: 'yes'", "steps: '1.5'", "learning_rate: 'on'"])
def test_a_text_that_is_no_number_for_its_key_is_refused_without_one(line):
    with pytest.raises(InputError, match=r"expected a value of type \w+, found '.*'; see docs/configuration.md"):
        load_with(line)


def test_an_empty_file_is_named(tiny, tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"text.files: expected text, found the empty file .*empty.txt"):
        config.check(config.merge(tiny, {"text": {"source": "files", "files": [str(tmp_path / "empty.txt")]}}))


def test_files_are_named_by_path_folder_or_pattern(tmp_path):
    for name in ("b.txt", "a.jsonl.gz", "below/c.parquet", "below/notes.md", ".hidden/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def found(*patterns):
        paths = config.expand([str(tmp_path / pattern) for pattern in patterns])
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert found(".") == ["a.jsonl.gz", "b.txt", "below/c.parquet"]
    assert found("below", "b.txt") == ["below/c.parquet", "b.txt"]
    assert found("*.txt") == found("[ab].t*") == ["b.txt"]
    assert found("**/*.parquet") == ["below/c.parquet"]
    for patterns, line in (
        (("*.md",), r"text.files\[0\]: .*found no file"),
        (("b.txt", "below/*"), r"text.files\[1\]: expected one of .txt, .*found .*notes.md"),
        (("b.txt", "*.txt"), r"text.files: expected each file once, found .*b.txt"),
    ):
        with pytest.raises(InputError, match=line):
            found(*patterns)


def test_token_files_and_the_tokenizers_file_are_part_of_the_text(tmp_path):
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    text = {"source": "bin", "seed": 0, "validation_share": 0.5, "folder": str(tmp_path), "vocabulary": 9}
    text["tokenizer"] = str(tmp_path / "tokenizer.json")
    seen = [config.text_settings({"text": text})]
    assert "vocabulary" not in seen[0]
    for name in ("val.bin", "tokenizer.json"):
        (tmp_path / name).write_text("another")
        seen.append(config.text_settings({"text": text}))
    assert len({settings["sha256"] for settings in seen}) == 3
    assert config.corpus_label(seen[0]) == tmp_path.name
    (tmp_path / "val.bin").unlink()
    with pytest.raises(InputError, match=r"text.folder: expected train.bin and val.bin in it, found no .*val.bin"):
        config.check_text(text)


def test_a_text_needs_a_tokenizer_or_the_size_of_one_to_train(tiny):
    text = tiny["text"] | {"tokenizer": None}
    assert config.text_settings({"text": text})["vocabulary"] == 768
    assert config.text_settings({"text": text | {"tokenizer": "gpt2"}})["tokenizer"] == "gpt2"
    del text["vocabulary"]
    with pytest.raises(InputError, match=r"text.tokenizer: expected a published tokenizer, or text.vocabulary"):
        config.check_text(text)


def test_a_run_that_does_not_fit_the_disk_is_refused_with_the_numbers(tiny):
    costs = [Cost("text", disk_bytes=3e9), Cost("a, seed 0", disk_bytes=4e9)]
    plan.refuse_missing_disk(costs, 7e9)
    with pytest.raises(InputError, match=r"expected 7.0 GB .*\(a, seed 0 4.0 GB, text 3.0 GB\), found 6.9 GB"):
        plan.refuse_missing_disk(costs, 6.9e9)


def test_the_number_of_shards_follows_from_the_size(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x" * 1000)
    text = {"source": "files", "files": [str(tmp_path / "a.txt")]}
    assert config.shards(text) == 1
    monkeypatch.setattr(config.text, "SHARD_BYTES", 300)
    assert config.shards(text) == 4
    assert config.shards({"source": "hub", "name": "Skylion007/openwebtext"}) == config.MOST_SHARDS


def test_hashes_of_large_files_are_remembered_for_the_next_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config.hashes, "QUICKLY_HASHED", 3)
    monkeypatch.setattr(config.hashes, "KNOWN_HASHES", {})
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    for path in paths:
        path.write_text(path.name)
    hashes = config.content_hashes(paths)
    assert hashes == [hashlib.sha256(path.name.encode()).hexdigest() for path in paths]
    monkeypatch.setattr(config.hashes, "KNOWN_HASHES", {})
    monkeypatch.setattr(config.hashes, "hash_file", None)
    assert config.content_hashes(paths) == hashes


def test_an_unknown_scale_names_the_known_ones():
    with pytest.raises(InputError, match=r"scale: expected one of auto, paper, single-gpu, tiny; found 'huge'"):
        config.scale_file("huge", SCALES)


def test_whatever_determines_the_weights_changes_the_models_folder(tiny):
    before = config.model_fingerprint(tiny, "kraken-2way")
    for path, value in (
        (("training", "steps"), 7),
        (("text", "seed"), 5),
        (("text", "vocabulary"), 600),
        (("models", "kraken-2way", "width"), 8),
        (("block_size",), 64),
    ):
        changed = copy.deepcopy(tiny)
        section = changed
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = value
        assert config.model_fingerprint(changed, "kraken-2way") != before, path
    tiny["training"]["log_every_steps"] += 1
    tiny["text"]["files"] = ["not used by this source"]
    assert config.model_fingerprint(tiny, "kraken-2way") == before


def test_editing_a_text_file_is_another_text(tmp_path):
    path = tmp_path / "a b'.txt"
    path.write_text("one\n")
    text = {"source": "files", "files": [str(path)], "seed": 0, "validation_share": 0.5, "vocabulary": 300}
    before = config.text_settings({"text": text})
    path.write_text("two\n")
    assert config.text_settings({"text": text}) != before
    assert config.corpus_label(before) == "a-b"


def test_how_a_training_is_watched_is_no_other_model(tiny):
    watched = config.merge(tiny, {"training": {"log_every_steps": 1, "checkpoint_every_steps": 7}})
    assert config.model_fingerprint(watched, "standard") == config.model_fingerprint(tiny, "standard")
    assert config.weights_recipe(watched, "standard") == config.weights_recipe(tiny, "standard")
    longer = config.merge(tiny, {"training": {"steps": 7000}})
    assert config.model_fingerprint(longer, "standard") != config.model_fingerprint(tiny, "standard")


@pytest.mark.parametrize(
    ("command", "accepting"),
    [
        ([], "--config B"),
        (["-C", "scale=paper"], "--config scale=paper B"),
        (["--config=scale=paper", "-n"], "--config scale=paper B"),
        (["-np"], "-p --config B"),
        (["-nq", "rules"], "-q rules --config B"),
        (["-nc1"], "-c1 --config B"),
        (["--apptainer-args", "-n x"], "--apptainer-args '-n x' --config B"),
        (["-pnj4", "-c1"], "-pj4 -c1 --config B"),
        (["-kn", "--dry-run", "-sSnakefile"], "-k -sSnakefile --config B"),
        (["results/ttft.csv", "--config", "budget={gpu_hours: 1}", "scale=paper", "--cores", "all"],
         "results/ttft.csv --cores all --config scale=paper B"),
    ],
)  # fmt: skip
def test_the_command_that_accepts_a_price_keeps_every_other_word(command, accepting):
    budget = "budget={gpu_hours: 9, disk_gb: 9}"
    expected = f"snakemake {accepting}".replace("B", f"'{budget}'")
    assert plan.accepting_command(["snakemake", *command], budget) == expected


def test_an_engine_takes_the_most_ranks_that_divide_its_splits(tiny):
    tiny["engines"]["tp"] = 4
    assert config.engine_tp(tiny, "kraken-2way") == 2
    assert config.engine_tp(tiny, "kraken-4way") == 4
    tiny["models"]["kraken-4way"] |= {"degree": 6, "n_head": 12}
    assert config.engine_tp(tiny, "kraken-4way") == 2


@pytest.mark.parametrize(
    ("tasks", "nodes", "expected"),
    [
        (16, 2, "srun --nodes=2 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=4 --kill-on-bad-exit=1"),
        (2, 1, "srun --nodes=1 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=4 --kill-on-bad-exit=1"),
    ],
)
def test_srun_starts_one_task_per_device_in_equal_shares_on_every_node(tasks, nodes, expected):
    resources = {"tasks": tasks, "nodes": nodes, "mpi": "srun", "cpus_per_task": 4}
    assert config.launcher(resources) == expected


def test_without_srun_a_training_starts_by_itself_and_devices_that_nodes_do_not_divide_are_refused():
    assert config.launcher({"tasks": 1, "nodes": 1, "cpus_per_task": 4}) == ""
    with pytest.raises(InputError, match="nodes of rule train: expected a number that divides its 8 devices, found 3"):
        config.launcher({"tasks": 8, "nodes": 3, "mpi": "srun", "cpus_per_task": 4})


def test_a_training_takes_the_cores_of_all_its_devices(tiny):
    tiny["training"] |= {"threads": 3, "devices": 4}
    assert (config.devices(tiny, "standard"), config.training_threads(tiny, "standard")) == (4, 12)
    tiny["training"] |= {"gpus": 8, "devices": None}
    assert config.devices(tiny, "standard") == 8
