"""A stand-in for the part of TensorRT-LLM 0.12.0 that krakenlm uses, on torch and a CPU, for tests alone.

Graphs are not recorded but computed as they are defined. Signatures are the real ones (../../signatures.json), and so
is what is refused: head sizes without a kernel, tensors of another shape, dimensions that are not known when a graph is
built. Collectives are those of the thread that calls (`functional.on_rank`).
"""

from .builder import BuildConfig, build
from .mapping import Mapping

__version__ = "0.12.0"
__all__ = ["BuildConfig", "Mapping", "build"]
