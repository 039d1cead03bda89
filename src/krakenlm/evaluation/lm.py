"""A trained model as lm-eval sees it, registered there as "krakenlm".

Shapes: B batch, T time, V vocabulary, S scored positions.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows
from torch.nn import functional

from krakenlm.errors import InputError
from krakenlm.models import load_model
from krakenlm.text.tokenizer import end_token, load_tokenizer

# Tokens of a batch, padding included: enough for matrix products to be efficient, few enough for a CPU's caches.
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536}
# Logits of a batch that may exist at once (float32: 800 MB), which matters with vocabularies like GPT-2's.
LOGITS_PER_BATCH = 200_000_000
NEW_TOKENS = 256


@register_model("krakenlm")
class KrakenLM(TemplateLM):
    """Scores and continues text with a model folder.

    How a pair of context and continuation becomes tokens is TemplateLM's business, the same as for lm-eval's own
    Hugging Face models: trailing spaces of the context go to the continuation, the whole is encoded, and the cut is
    at the context's own length. The end token stands in for an empty context. What is longer than the model's
    block_size loses its beginning.

    Args:
        pretrained: model folder (config.json, model.safetensors, tokenizer.json).
        device: a torch device; by default the GPU if there is one.
        batch_size, max_batch_size: lm-eval hands these to every model; batches here are measured in tokens.

    Raises:
        InputError: the folder is not a model's, or its tokenizer has tokens that the model has not.
    """

    def __init__(
        self,
        pretrained: str | Path,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.module = load_model(pretrained).to(self._device)
        path = Path(pretrained) / "tokenizer.json"
        self.tokenizer = load_tokenizer(path)
        self.end = end_token(self.tokenizer, str(path))
        self.max_length = self.module.config.block_size
        if self.tokenizer.get_vocab_size() > self.module.config.vocab_size:
            raise InputError(
                f"{path}: expected at most {self.module.config.vocab_size} tokens, the model's vocab_size, found "
                f"{self.tokenizer.get_vocab_size()}; give the model its own tokenizer"
            )
        # A context comes back with each of its continuations.
        self.encode = functools.lru_cache(maxsize=1 << 16)(self.encode)

    @property
    def eot_token_id(self) -> int:
        return self.end

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        return list(self.encode(string))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether it is the greedy one) of each request.

        Requests are (anything, context tokens, continuation tokens); a continuation has block_size tokens at most.
        """
        targets = {}
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise InputError(
                    f"continuation: expected at most {self.max_length} tokens, the model's block_size, found "
                    f"{len(continuation)}; score it with loglikelihood_rolling"
                )
            inputs = tuple((context + continuation)[-self.max_length - 1 : -1])
            # Equal inputs run once: answers of one token, such as yes and no, differ in the target alone.
            targets.setdefault(inputs, []).append((number, continuation))
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for batch in self.batches(sorted(targets, key=lambda inputs: (-len(inputs), inputs))):
            self.score(batch, targets, results)
        return results

    def batches(self, inputs: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Cut `inputs`, longest first, into batches of about equal size in padded tokens."""
        room = min(TOKENS_PER_BATCH[self._device.type], LOGITS_PER_BATCH // self.module.config.vocab_size)
        first = 0
        while first < len(inputs):
            count = max(1, room // max(1, len(inputs[first])))
            yield inputs[first : first + count]
            first += count

    @torch.inference_mode()
    def score(self, batch: list[tuple[int, ...]], targets: Mapping, results: list) -> None:
        """Put the results of every continuation of the inputs in `batch` into `results`."""
        logits_BTV = self.module(self.pad(batch))
        # One flat gather for the whole batch: (row, position, token) of every scored token.
        scored = [
            (row, len(inputs) - len(continuation) + offset, token)
            for row, inputs in enumerate(batch)
            for _, continuation in targets[inputs]
            for offset, token in enumerate(continuation)
        ]
        row_S, position_S, token_S = torch.tensor(scored, device=self._device).reshape(-1, 3).unbind(1)
        logits_SV = logits_BTV[row_S, position_S].float()
        greedy_S = (logits_SV.argmax(-1) == token_S).cpu()
        nats_S = functional.cross_entropy(logits_SV, token_S, reduction="none").cpu().double()
        start = 0
        for inputs in batch:
            for number, continuation in targets[inputs]:
                part = slice(start, start + len(continuation))
                results[number] = (-nats_S[part].sum().item(), bool(greedy_S[part].all()))
                start += len(continuation)

    def pad(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, T) int64, filled up on the right: a causal model's earlier positions never see what follows."""
        longest = max(map(len, batch))
        filled = [[*row, *[self.end] * (longest - len(row))] for row in batch]
        return torch.tensor(filled, dtype=torch.int64, device=self._device)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each request's text, every token predicted once after an end token.

        Windows have block_size tokens; the last one reaches back, so that its tokens have a full context too.
        """
        pairs, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for inputs, predicted in get_rolling_token_windows(tokens, self.end, self.max_length, 1):
                pairs.append((None, inputs[: len(inputs) - len(predicted) + 1], predicted))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(pairs), strict=True):
            totals[owner] += nats
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each request's context greedily until a stop string, the end token or max_gen_toks (256).

        Raises:
            InputError: the request asks for sampling.
        """
        texts = [""] * len(requests)
        queue = sorted(range(len(requests)), key=lambda number: -len(self.encode(requests[number].args[0])))
        room = max(1, TOKENS_PER_BATCH[self._device.type] // self.max_length)
        for first in range(0, len(queue), room):
            numbers = queue[first : first + room]
            rows = [Generation(self, *requests[number].args) for number in numbers]
            while active := [row for row in rows if not row.done]:
                self.step(active)
            for number, row in zip(numbers, rows, strict=True):
                texts[number] = row.text
        return texts

    @torch.inference_mode()
    def step(self, rows: list["Generation"]) -> None:
        """One more token for each row."""
        logits_BTV = self.module(self.pad([row.tokens for row in rows]))
        for number, row in enumerate(rows):
            row.append(logits_BTV[number, len(row.tokens) - 1].argmax().item())


class Generation:
    """One greedy continuation: `tokens` (context included), `text` (without it), `done`.

    A context too long for the model and max_gen_toks more tokens loses its beginning.
    """

    def __init__(self, model: KrakenLM, context: str, settings: Mapping) -> None:
        if settings.get("do_sample") or settings.get("temperature"):
            raise InputError(
                f"generation_kwargs: expected greedy generation, found {dict(settings)}; leave do_sample and "
                "temperature out"
            )
        self.model = model
        until = settings.get("until") or []
        self.until = [until] if isinstance(until, str) else list(until)
        # At least one token of context stays, the end token where there is none.
        self.left = min(settings.get("max_gen_toks", NEW_TOKENS), model.max_length)
        tokens = model.tok_encode(context) or [model.end]
        self.tokens = tokens[-(model.max_length - self.left + 1) :]
        self.start = len(self.tokens)
        self.text = ""
        self.done = self.left < 1

    def append(self, token: int) -> None:
        self.left -= 1
        if token == self.model.end:
            self.done = True
            return
        self.tokens.append(token)
        self.text = self.model.tokenizer.decode(self.tokens[self.start :])
        stops = [place for stop in self.until if stop and (place := self.text.find(stop)) >= 0]
        if stops:
            self.text = self.text[: min(stops)]
        self.done = bool(stops) or self.left < 1
