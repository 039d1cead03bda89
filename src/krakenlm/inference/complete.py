"""Text in, text out, piece by piece, from a model folder, in this process or over several ranks."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

from krakenlm.errors import InputError
from krakenlm.inference.generate import Sampling, generate, likeliest
from krakenlm.inference.launch import stream_ranks
from krakenlm.inference.shards import as_engine, cut_rank
from krakenlm.models import load_config
from krakenlm.models.collectives import ALONE, Collectives
from krakenlm.text.tokenizer import end_token, load_tokenizer


def complete(
    model: str | Path, prompt: str, new_tokens: int, sampling: dict | None = None, tp: int = 1, threads: int = 1
) -> Iterator[str]:
    """What follows `prompt`, as soon as it is known, until the end of the document or `new_tokens` tokens.

    An empty prompt begins a document. `sampling` has the fields of Sampling; without it the likeliest token is taken.
    Over `tp` ranks, processes of `threads` threads each, the text is the one of a single rank.

    Raises:
        InputError: the prompt leaves no room in the model's block, the folder is not a model's, an option is out of
            its range, or the model does not divide over `tp` ranks.
        RankError: a rank died.
    """
    config, tokenizer = load_config(model), load_tokenizer(Path(model) / "tokenizer.json")
    end = end_token(tokenizer, str(model))
    prompt_ids = tokenizer.encode(prompt).ids or [end]
    room = config.block_size - len(prompt_ids)
    if room < 1:
        raise InputError(
            f"prompt: expected fewer than block_size ({config.block_size}) tokens, found {len(prompt_ids)}; shorten it"
        )
    choice(sampling)
    arguments = {"model": str(model), "prompt": prompt_ids, "new_tokens": min(new_tokens, room), "sampling": sampling}
    arguments["vocabulary"] = tokenizer.get_vocab_size()
    if tp == 1:
        tokens = tokens_on_rank(ALONE, "cpu", **arguments)
    else:
        tokens = stream_ranks("krakenlm.inference.complete:tokens_on_rank", arguments, world=tp, threads=threads)
    return pieces(tokens, tokenizer, end)


def choice(sampling: dict | None) -> Callable[[Tensor], Tensor]:
    return likeliest if sampling is None else Sampling(**sampling)


@torch.inference_mode()
def tokens_on_rank(
    comm: Collectives,
    device: str,
    model: str,
    prompt: list[int],
    new_tokens: int,
    sampling: dict | None,
    vocabulary: int,
) -> Iterator[int]:
    """Body of one rank: the tokens behind the prompt, of the first `vocabulary`; what lies behind those is padding."""
    module = as_engine(cut_rank(model, comm.rank, comm.world, device))
    prompt_1T = torch.tensor([prompt], device=device)
    choose = choice(sampling)
    for token_1 in generate(
        module, prompt_1T, new_tokens, comm, choose=lambda logits_1V: choose(logits_1V[:, :vocabulary])
    ):
        yield token_1.item()


def pieces(tokens: Iterator[int], tokenizer: Tokenizer, end: int) -> Iterator[str]:
    """The text of the tokens before `end`, each piece as soon as its bytes are whole characters."""
    stream = DecodeStream(skip_special_tokens=True)
    for token in tokens:
        if token == end:
            return
        piece = stream.step(tokenizer, token)
        if piece is not None:
            yield piece
