"""A small run in as many processes as its recipe has devices, which counts how often gradients are exchanged.

    python two_processes.py TOKENS TOKENIZER OUT RECIPE

Lightning starts this script anew for every further process.
"""

import json
import os
import sys
from pathlib import Path

from small_run import MODEL
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from krakenlm.training import run
from krakenlm.training.saving import Checkpoints

exchanges = []
on_train_start = Checkpoints.on_train_start


def counted(group, bucket):
    exchanges.append(bucket.buffer().numel())
    return allreduce_hook(group, bucket)


def counting(self, trainer, module):
    on_train_start(self, trainer, module)
    trainer.model.register_comm_hook(None, counted)


if __name__ == "__main__":
    Checkpoints.on_train_start = counting
    tokens, tokenizer, out, recipe = sys.argv[1:]
    run.train(tokens, tokenizer, MODEL, json.loads(recipe), 0, out)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        (Path(out) / "exchanges.json").write_text(json.dumps(exchanges))
