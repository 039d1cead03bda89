"""A trained model as lm-eval sees it, registered there as "krakenlm".

Shapes: B batch, T time, V vocabulary, P wanted positions of a pack, R requests, S scored tokens.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows
from torch import Tensor

from krakenlm.errors import InputError
from krakenlm.evaluation.packing import Pack, packs
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import Sampling, likeliest
from krakenlm.models import load_model
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import ALONE, Collectives
from krakenlm.progress import Progress
from krakenlm.text.tokenizer import end_token, load_tokenizer, paddings

# Tokens of a pack: enough for matrix products to be efficient, few enough for a CPU's caches.
TOKENS_PER_PACK = {"cpu": 4096, "cuda": 65536}
# Logits of a pack that may exist at once (float32: 800 MB), which matters with vocabularies like GPT-2's.
LOGITS_PER_PACK = 200_000_000
NEW_TOKENS = 256
# What a generation may be asked for (max_gen_toks under lm-eval's other names, too), and values of others that ask for
# nothing.
OPTIONS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "no_repeat_ngram_size": 0}


@register_model("krakenlm")
class KrakenLM(TemplateLM):
    """Scores and continues text with a model folder.

    How a pair of context and continuation becomes tokens is TemplateLM's business, the same as for lm-eval's own
    Hugging Face models: trailing spaces of the context go to the continuation, the whole is encoded, and the cut is
    at the context's own length. The end token stands in for an empty context. What is longer than the model's
    block_size loses its beginning.

    Args:
        path: model folder (config.json, model.safetensors, tokenizer.json).
        device: a torch device; by default the GPU if there is one. Without a GPU, cuda means the CPU: lm-eval's
            command line says cuda:0 for everyone who says nothing.
        batch_size, max_batch_size: lm-eval hands these to every model; inputs here are packed by their tokens.
        comm: ranks that each have this model and are asked the same, so that they share the work: of loglikelihoods
            each computes every world-th pack, and all get all results, the bits of which are those of one rank alone.

    Raises:
        InputError: the folder is not a model's, or its tokenizer is not its vocabulary's.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        comm: Collectives = ALONE,
    ) -> None:
        super().__init__()
        self.comm = comm
        chosen = torch.device(device or "cuda")
        self._device = torch.device("cpu") if chosen.type == "cuda" and not torch.cuda.is_available() else chosen
        self.module = load_model(path).to(self._device)
        tokenizer = Path(path) / "tokenizer.json"
        self.tokenizer = load_tokenizer(tokenizer)
        self.end = end_token(self.tokenizer, str(tokenizer))
        self.max_length = self.module.config.block_size
        vocab_size, found = self.module.config.vocab_size, self.tokenizer.get_vocab_size()
        if vocab_size not in paddings(found):
            raise InputError(
                f"{tokenizer}: expected a tokenizer for the model's vocab_size, {vocab_size}, which may be its size "
                f"padded to a multiple of a power of two, found one of {found} tokens; give the model its own tokenizer"
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

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether it is the greedy one) of each (context, continuation).

        Raises:
            InputError: a continuation has no tokens or too many, or a context is of white space alone.
        """
        for request in requests:
            context, continuation = request.args
            # TemplateLM looks at the first token of a continuation without a context.
            if not context and not self.encode(continuation):
                raise InputError(without_tokens("continuation", context, continuation))
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        """`loglikelihood` of requests (both texts or None, context tokens, continuation tokens)."""
        # Equal inputs run once: answers of one token, such as yes and no, differ in what is looked up alone.
        asked: dict[tuple[int, ...], list[int]] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            if not context or not continuation:
                raise InputError(without_tokens("continuation" if context else "context", *texts))
            if len(continuation) > self.max_length:
                raise InputError(
                    f"continuation: expected at most {self.max_length} tokens, the model's block_size, found "
                    f"{len(continuation)}; choose a model with longer blocks, or score it with loglikelihood_rolling"
                )
            inputs = tuple((context + continuation)[-self.max_length - 1 : -1])
            asked.setdefault(inputs, []).append(number)
        # Of each request nats and 1 where the continuation is the greedy one; another rank's requests stay 0 here.
        results_R2 = torch.zeros(len(requests), 2, dtype=torch.float64)
        inputs = sorted(asked)
        wanted = [max(len(requests[number][2]) for number in asked[row]) for row in inputs]
        most_wanted = LOGITS_PER_PACK // self.module.config.vocab_size
        progress = Progress("superglue", len(requests), "continuations")
        for place, part in enumerate(packs(inputs, wanted, TOKENS_PER_PACK[self._device.type], most_wanted)):
            if place % self.comm.world == self.comm.rank:
                numbers = [asked[row] for row in inputs[part]]
                self.score(inputs[part], wanted[part], numbers, requests, results_R2)
            progress.add(sum(len(asked[row]) for row in inputs[part]))
        totals_R2 = self.comm.all_reduce(results_R2.to(self._device)).wait().tolist()
        results = [(nats, bool(is_greedy)) for nats, is_greedy in totals_R2]
        for (text, _, _), result in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, result)
        return results

    @torch.inference_mode()
    def score(
        self, inputs: list[tuple], wanted: list[int], numbers: list[list[int]], requests: Sequence, results_R2: Tensor
    ) -> None:
        """Put into `results_R2` those of the requests `numbers` of each of `inputs`, by logits at its `wanted` last."""
        last = [range(len(row) - count, len(row)) for row, count in zip(inputs, wanted, strict=True)]
        pack = Pack(inputs, last, self._device)
        logits_PV = self.module(pack.tokens_1T, cache=pack, at=pack.at_P)[0].float()
        total_P, greedy_P = logits_PV.logsumexp(-1), logits_PV.argmax(-1).tolist()
        scored = [
            (number, rows[len(rows) - len(requests[number][2]) :].tolist())
            for rows, each in zip(pack.rows, numbers, strict=True)
            for number in each
        ]
        row_S = torch.tensor([row for _, rows in scored for row in rows], dtype=torch.int64)
        token_S = torch.tensor([token for number, _ in scored for token in requests[number][2]], dtype=torch.int64)
        row_S, token_S = row_S.to(self._device), token_S.to(self._device)
        nats_S = (logits_PV[row_S, token_S] - total_P[row_S]).double().cpu()
        start = 0
        for number, rows in scored:
            end = start + len(rows)
            is_greedy = [greedy_P[row] for row in rows] == requests[number][2]
            results_R2[number, 0], results_R2[number, 1] = nats_S[start:end].sum(), is_greedy
            start = end

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
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each request's context until a stop string, the end token or max_gen_toks (256, or half a block).

        Greedily, or, with do_sample, by temperature, top_k and top_p, drawn from a generator of seed 0. As with every
        model of lm-eval's, max_gen_toks may be called max_new_tokens, max_tokens or max_completion_tokens.

        Raises:
            InputError: an option is unknown or out of its range, or the block has no room for max_gen_toks.
        """
        rows = [Generation(self, *request.args) for request in requests]
        for sampling in dict.fromkeys(row.sampling for row in rows):
            choose = Sampling(*sampling) if sampling else likeliest
            queue = sorted((row for row in rows if row.sampling == sampling), key=lambda row: -len(row.context))
            while queue:
                room = max(1, TOKENS_PER_PACK[self._device.type] // queue[0].capacity)
                self.generate(queue[:room], choose)
                queue = queue[room:]
        for row, request in zip(rows, requests, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, row.text)
        return [row.text for row in rows]

    @torch.inference_mode()
    def generate(self, rows: list["Generation"], choose: Sampling) -> None:
        """Continue `rows` side by side, each behind its own context, until all are done."""
        lengths = [len(row.context) for row in rows]
        filled = [[*row.context, *[self.end] * (max(lengths) - len(row.context))] for row in rows]
        cache = Cache(self.module, len(rows), min(self.max_length, max(lengths) + max(row.left for row in rows)))
        # What stands on the right of a causal model's position does not matter to it.
        last_B = torch.tensor(lengths, device=self._device) - 1
        at_P, place_B = last_B.unique(return_inverse=True)
        logits_BPV = self.module(torch.tensor(filled, device=self._device), cache=cache, at=at_P)
        logits_BV = logits_BPV[torch.arange(len(rows), device=self._device), place_B]
        cache.set_lengths(lengths)
        while True:
            token_B = choose(logits_BV)
            for row, token in zip(rows, token_B.tolist(), strict=True):
                row.append(token)
            if all(row.done for row in rows):
                return
            logits_BV = self.module(token_B[:, None], cache=cache, at=LAST)[:, -1]


def without_tokens(what: str, context: str, continuation: str) -> str:
    """Why a pair cannot be scored, as lm-eval's Hugging Face models cannot either, with as much of it as finds it."""
    return (
        f"{what}: expected at least one token, found none in {context if what == 'context' else continuation!r} of the "
        f"pair {context[-60:]!r} and {continuation[:60]!r}; correct the task (a context may be empty, but not of white "
        "space alone)"
    )


class Generation:
    """One continuation: `context` (tokens), `text` (without the context), `left` (tokens), `sampling`, `done`.

    As lm-eval's Hugging Face models do, a context too long for the model and max_gen_toks loses its beginning.
    """

    def __init__(self, model: KrakenLM, context: str, settings: Mapping) -> None:
        self.model = model
        settings = normalized(settings, min(NEW_TOKENS, model.max_length // 2))
        self.sampling = sampling_of(settings)
        self.until = settings["until"]
        self.left = settings["max_gen_toks"]
        if not 0 < self.left < model.max_length:
            raise InputError(
                f"max_gen_toks: expected 1 to {model.max_length - 1}, less than the model's block_size, found "
                f"{self.left}; give --gen_kwargs max_gen_toks={model.max_length // 2}"
            )
        # At least one token of context stays, the end token where there is none.
        self.context = (model.tok_encode(context) or [model.end])[-(model.max_length - self.left) :]
        self.capacity = len(self.context) + self.left
        self.tokens: list[int] = []
        self.text = ""
        self.done = False

    def append(self, token: int) -> None:
        if self.done:
            return
        self.left -= 1
        if token == self.model.end:
            self.done = True
            return
        self.tokens.append(token)
        self.text = self.model.tokenizer.decode(self.tokens)
        stops = [place for stop in self.until if stop and (place := self.text.find(stop)) >= 0]
        if stops:
            self.text = self.text[: min(stops)]
        self.done = bool(stops) or self.left < 1


def normalized(settings: Mapping, new_tokens: int) -> Mapping:
    """lm-eval's generation settings under its own names, until as a list; `new_tokens` where they name no number.

    Raises:
        InputError: an option is not one that this model has, or no number where that is expected.
    """
    try:
        found = normalize_gen_kwargs(dict(settings), new_tokens)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"gen_kwargs: expected numbers for temperature and max_gen_toks, found {dict(settings)} ({error}); "
            "correct them"
        ) from None
    for name in sorted(found.keys() - OPTIONS):
        if found[name] is not None and found[name] != NEUTRAL.get(name):
            raise InputError(
                f"gen_kwargs: expected options out of {', '.join(sorted(OPTIONS))}, found {name}={found[name]!r}; "
                "leave it out"
            )
    return found


def sampling_of(settings: Mapping) -> tuple | None:
    """(temperature, top_k, top_p) of normalized settings, None where they ask for the likeliest tokens."""
    temperature = settings.get("temperature")
    if not settings["do_sample"] or temperature == 0:
        return None
    return (1.0 if temperature is None else float(temperature), settings.get("top_k"), float(settings.get("top_p", 1)))
