"""Text in, text out, piece by piece, from a model folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from krakenlm.errors import InputError
from krakenlm.inference.generate import generate, likeliest
from krakenlm.models import load_model
from krakenlm.text.tokenizer import end_token, load_tokenizer


@torch.inference_mode()
def complete(
    model: str | Path, prompt: str, new_tokens: int, choose: Callable[[Tensor], Tensor] = likeliest
) -> Iterator[str]:
    """Yield what follows `prompt`, as soon as it is known, until the end of the document or `new_tokens` tokens.

    An empty prompt begins a document.

    Raises:
        InputError: the prompt leaves no room in the model's block, or the folder is not a model's.
    """
    module, tokenizer = load_model(model), load_tokenizer(Path(model) / "tokenizer.json")
    end = end_token(tokenizer, str(model))
    prompt_ids = tokenizer.encode(prompt).ids or [end]
    room = module.config.block_size - len(prompt_ids)
    if room < 1:
        raise InputError(
            f"prompt: expected fewer than block_size ({module.config.block_size}) tokens, found {len(prompt_ids)}; "
            "shorten it"
        )
    stream = DecodeStream(skip_special_tokens=True)
    for token_B in generate(module, torch.tensor([prompt_ids]), min(new_tokens, room), choose=choose):
        token = token_B.item()
        if token == end or token >= tokenizer.get_vocab_size():  # the rest is padding of the vocabulary
            return
        piece = stream.step(tokenizer, token)
        if piece is not None:  # else the bytes so far are no whole character yet
            yield piece
