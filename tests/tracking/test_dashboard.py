"""`krakenlm dashboard` against a stand-in for W&B's server."""

import json

import pytest
from tracked_runs import KEY, open_run

from krakenlm.errors import InputError
from krakenlm.evaluation.superglue import CORRECTED, TASKS
from krakenlm.tracking import dashboard
from krakenlm.tracking.dashboard import BARS, SCORES, SECTIONS, TABLES, TRAINING, create


def strings(value):
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)


def test_the_workspace_has_a_panel_for_every_metric_and_table_of_every_stage(server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with open_run(tmp_path / "tiny", mode="offline"):
        pass
    monkeypatch.delenv("WANDB_PROJECT")
    address = create(tmp_path)
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("someone", "mine", "krakenlm")
    assert "/someone/mine?nw=" in address
    spec = json.loads(view["spec"])
    sections = spec["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections[: len(SECTIONS)]] == list(SECTIONS)
    assert {"Text", "Training", "Evaluation", "Shards", "Engines", "Samples", "Time to first token"} <= set(SECTIONS)
    assert all(section["panels"] for section in sections[: len(SECTIONS)])
    shown = set(strings(sections))
    assert {metric for metrics in TRAINING.values() for metric in metrics} <= shown
    bars = {f"summary:{metric}" for panels in BARS.values() for metrics in panels.values() for metric in metrics}
    assert bars <= shown | {f"summary:{each}" for each in shown}
    assert {"summary:evaluation/loss", "summary:superglue/boolq/acc", "summary:superglue/record/f1"} <= bars
    assert {table for tables in TABLES.values() for table in tables} <= shown
    assert KEY not in view["spec"]


def test_every_score_of_a_task_has_its_bar():
    tasks = {key: set(task.metrics) | ({CORRECTED} if key == "multirc" else set()) for key, task in TASKS.items()}
    assert {key: set(metrics) for key, metrics in SCORES.items()} == tasks


def test_a_second_call_updates_the_workspace_of_the_first(server, tmp_path, monkeypatch):
    first = create(tmp_path)
    monkeypatch.setitem(dashboard.TRAINING, "Something new", ["train/new"])
    assert create(tmp_path) == first
    (view,) = server.views.values()
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections].count("Training") == 1
    assert "train/new" in set(strings(sections))


def test_sections_that_were_made_by_hand_stay(server, tmp_path):
    create(tmp_path)
    (view,) = server.views.values()
    spec = json.loads(view["spec"])
    sections = spec["section"]["panelBankConfig"]["sections"]
    training = next(section for section in sections if section["name"] == "Training")
    sections.append(training | {"name": "By hand", "panels": training["panels"][:1]})
    view["spec"] = json.dumps(spec)
    create(tmp_path)
    (view,) = server.views.values()
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [*SECTIONS, "By hand"]
    assert len(sections[-1]["panels"]) == 1


def damage(server):
    (view,) = server.views.values()
    view["spec"] = json.dumps({**json.loads(view["spec"]), "section": {"panelBankConfig": "of another version"}})


def lose(server):
    server.answer_View = lambda **_: {"project": None}


@pytest.mark.parametrize(("trouble", "found"), [(damage, "ValidationError"), (lose, "Project `.*` not found")])
def test_a_workspace_that_cannot_be_read_is_left_alone(server, tmp_path, trouble, found):
    create(tmp_path)
    trouble(server)
    before = json.dumps(server.views)
    with pytest.raises(InputError, match=found):
        create(tmp_path)
    assert json.dumps(server.views) == before


def test_without_a_key_one_line_says_what_shows_the_runs_instead(tmp_path):
    with open_run(tmp_path / "tiny", mode="offline"):
        pass
    with pytest.raises(InputError, match="dashboard: expected a W&B key") as error:
        create(tmp_path)
    assert f"`wandb leet {tmp_path}/tiny/wandb`" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trouble", ["fail", pytest.param("stall", marks=pytest.mark.slow)])
def test_a_server_in_trouble_costs_one_line_without_the_key(server, tmp_path, monkeypatch, trouble):
    monkeypatch.setattr(dashboard, "SAVE_SECONDS", 1.0)
    getattr(server, trouble)()
    with pytest.raises(InputError, match="dashboard: expected W&B's server to take a workspace") as error:
        create(tmp_path)
    assert KEY not in str(error.value)
    assert "\n" not in str(error.value)
