"""A stage that logs up to a step, as a training does: `small_stage.py DIRECTORY LAST MODE END`.

It logs its losses from the start each time, as what a training replays; its speeds only from its checkpoint on. Halfway
it waits for a line on stdin. END is what comes after the last step: `hang`, `outputs` (a table and an artifact) or
`outputs, hang`.
"""

import sys
import time
from pathlib import Path

from krakenlm.tracking.run import start_run

directory, last, mode, end = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
checkpoint = directory / "checkpoint"
first = int(checkpoint.read_text()) if checkpoint.exists() else 0
with start_run("train", name="kraken", group="g", parameters={"width": 8}, directory=directory, mode=mode) as run:
    for step in range(0, last + 10, 10):
        speed = {"train/tokens_per_second": 1e6 + step} if step >= first else {}
        run.log({"train/loss": 100 / (step + 10)} | speed, step=step)
        if step == last // 20 * 10:
            print("halfway", flush=True)
            sys.stdin.readline()
    checkpoint.write_text(str(last))
    if "outputs" in end:
        run.table("scores", [{"model": "kraken"}])
        (directory / "model.json").write_text("{}")
        run.wrote(directory / "model.json", "model")
    print("logged", last, flush=True)
    if "hang" in end:
        time.sleep(600)
