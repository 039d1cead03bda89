"""Models as TensorRT-LLM engines, written for its release 0.12.0 (docs/tensorrt-llm.md)."""
