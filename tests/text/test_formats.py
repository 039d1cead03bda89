import json

import pytest

from krakenlm.text.embedded import write_tasks
from krakenlm.text.formats import FORMATS


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Task -> [(our row, lm-eval's document, lm-eval's own task object)]."""
    from krakenlm.evaluation.superglue import TASKS, load_tasks

    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, seed=1, examples=12)
    loaded = load_tasks(folder)["tasks"]
    pairs = {}
    for task in FORMATS:
        rows = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]
        lm_eval_task = loaded[TASKS[task].lm_eval_name]
        documents = list(lm_eval_task.eval_docs)
        pairs[task] = [(row, document, lm_eval_task) for row, document in zip(rows, documents, strict=True)]
    return pairs


@pytest.mark.parametrize("task", FORMATS)
def test_a_document_reads_like_the_prompts_that_lm_eval_builds(task, asked):
    for row, document, lm_eval_task in asked[task]:
        prompt, answers, right = FORMATS[task].text(row)
        requests = lm_eval_task.construct_requests(document, lm_eval_task.doc_to_text(document))
        theirs = ["".join(request.args) for request in requests]
        ours = [prompt + answer for answer in answers]
        # MultiRC's choices stand the wrong way round in lm-eval 0.4.13.
        assert theirs == (ours[::-1] if task == "multirc" else ours)
        if task not in ("multirc", "copa", "record"):
            assert lm_eval_task.doc_to_target(document) == right
