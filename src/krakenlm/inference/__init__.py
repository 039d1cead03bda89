"""Models run over ranks: collectives, shards on disk, KV cache, generation."""
