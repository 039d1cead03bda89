"""Text in, tokens out: corpora (`corpus`, `embedded`), tokenizers (`tokenizer`), token files (`store`)."""
