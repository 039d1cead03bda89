"""Tokens in, trained models out: recipe and schedule, windows, Lightning module, checkpoints. Start at `run.train`."""
