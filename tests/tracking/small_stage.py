"""A stage that logs up to a step, then hangs or ends: `small_stage.py DIRECTORY LAST MODE HOW`.

It logs from the start each time, as a training does that goes on from a checkpoint and replays its curve.
"""

import sys
import time
from pathlib import Path

from krakenlm.tracking.run import start_run

directory, last, mode, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
with start_run("train", name="kraken", group="g", parameters={"width": 8}, directory=directory, mode=mode) as run:
    for step in range(0, last + 10, 10):
        run.log({"train/loss": 100 / (step + 10)}, step=step)
    print("logged", last, flush=True)
    if how == "hang":
        time.sleep(600)
    run.table("scores", [{"model": "kraken"}])
    (directory / "model.json").write_text("{}")
    run.wrote(directory / "model.json", "model")
