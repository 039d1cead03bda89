"""Trained models in, scores out."""
