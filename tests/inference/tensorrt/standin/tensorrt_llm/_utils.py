def pad_vocab_size(vocab_size, tp_size):
    return -(-vocab_size // tp_size) * tp_size
