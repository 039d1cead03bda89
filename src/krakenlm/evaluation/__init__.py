"""Trained models in, scores out. Importing this registers "krakenlm" among lm-eval's models."""

from lm_eval.api.registry import model_registry

# By its place: lm-eval imports the class, and torch with it, when it is asked for the model.
model_registry.register("krakenlm", target="krakenlm.evaluation.lm:KrakenLM")
