"""Weights & Biases: a stage is a run, what it reads and writes are artifacts, and no failure of it costs a stage."""
