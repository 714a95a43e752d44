"""What can be said and done about a stitch without labels: choose its layer, make its texts.

A stitched *language model* judges a layer: the better it foretells the next token of unlabelled
text, the more of the host's states has arrived. Texts to fit a translation on need not come from
outside: the guest writes its own, or both models run on tokens drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from embspace_helpers.experiments.kernels import Translation
from embspace_helpers.experiments.stitching import LAST, Stream, run_from
from embspace_helpers.reading.activations import Tokens
from embspace_helpers.reading.arrays import as_model
from embspace_helpers.reading.model import Model

# ---------------------------------------------------------------- how good is a stitch?


@torch.no_grad()
def likelihood(guest: Model, found: Iterable[Stream], layer: int, translation: Translation,
               last: int = LAST, ids: Tensor | None = None) -> float:
    """Mean log-likelihood of the next token (nats), by the stitched *language model*; no label.

    `guest` is the pretrained model A. `ids` (e_B,): A's id of every token of the host, -1 where
    there is none (it does not count then); default: the two vocabularies are one.
    """
    total, count = 0.0, 0
    for logits, gold, _ in predictions(guest, found, layer, translation, last, ids):
        total += -nn.functional.cross_entropy(logits, gold, reduction="sum").item()
        count += len(gold)
    return total / count


@torch.no_grad()
def predictions(guest: Model, found: Iterable[Stream], layer: int, translation: Translation,
                last: int = LAST, ids: Tensor | None = None
                ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The stitched language model's logits (n, e_A) of next tokens, batch by batch.

    With them the tokens (n,) that do come, and where: a mask (b, positions - 1). See `likelihood`.
    """
    for stream in found:
        states = run_from(guest, translation(stream.states[layer]), stream.mask, last)
        gold = stream.ids if ids is None else ids.to(stream.ids.device)[stream.ids]
        there = stream.mask[:, 1:].bool() & (gold[:, 1:] >= 0)
        logits = states[:, :-1][there] @ guest.parameters.E_out.to(states.dtype)
        yield logits.float(), gold[:, 1:][there], there


@torch.no_grad()
def foresight(guest: Model, found: Iterable[Stream], layer: int, translation: Translation,
              best_of_host: Sequence[Tensor], last: int = LAST) -> dict[str, float]:
    """What the stitched language model says of next tokens, on average over positions.

    `likelihood`: of the token that comes, in nats. `confidence`: of its own best token, in nats.
    `agreement`: how often that is the host's own best token too; `best_of_host` (b, positions) has
    one for every batch of streams. Host and guest have one vocabulary.
    """
    total, said = dict.fromkeys(("likelihood", "confidence", "agreement"), 0.0), 0
    for (logits, gold, there), best in zip(
            predictions(guest, found, layer, translation, last), best_of_host):
        logs = logits.log_softmax(-1)
        top, token = logs.max(-1)
        total["likelihood"] += logs.gather(1, gold[:, None]).sum().item()
        total["confidence"] += top.sum().item()
        total["agreement"] += (token == best[:, :-1][there]).sum().item()
        said += len(gold)
    return {name: x / said for name, x in total.items()}


def closeness(states: Tensor, target: Tensor) -> float:
    """Minus the Fréchet distance of two clouds of states, (n, d) and (m, d), as normal ones.

    In units of the target's variance: 0 for equal means and covariances.
    """
    X, Y = states.double(), target.double()
    gap = (X.mean(0) - Y.mean(0)).square().sum()
    A, B = X.T.cov(), Y.T.cov()
    values, V = torch.linalg.eigh(B)
    root = (V * values.clamp(min=0).sqrt()) @ V.T
    both = torch.linalg.eigvalsh(root @ A @ root).clamp(min=0).sqrt().sum()
    return -((gap + A.trace() + B.trace() - 2 * both) / B.trace()).item()


def zero_point(own: Tensor, stitched: Tensor) -> Tensor:
    """What to take off stitched margins (..., n) so that their mean is that of `own` (..., m)."""
    return stitched.mean(-1, keepdim=True) - own.mean(-1, keepdim=True)


# ---------------------------------------------------------------- texts from nowhere


@torch.no_grad()
def own_text(model: Model, n: int = 128, length: int = 128, seed: int = 0) -> list[list[int]]:
    """Rows of tokens (n, length) that a language model writes itself, sampled as it predicts.

    It begins with its start token, which is left out of what is returned.
    """
    inner = as_model(model).model
    start = torch.full((n, 1), inner.config.bos_token_id, device=inner.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = inner.generate(start, attention_mask=torch.ones_like(start), do_sample=True,
                              max_new_tokens=length, min_new_tokens=length, top_k=0,
                              pad_token_id=inner.config.bos_token_id, use_cache=True)
    return rows[:, 1:].tolist()


def random_tokens(model: Model, n: int = 400, length: int = 128, seed: int = 0) -> Tokens:
    """Rows of tokens (n, length) drawn one by one, as often as they occur in the model's texts.

    Where these counts are not known, all tokens alike. Never longer than the model has positions.
    """
    model = as_model(model)
    length = min(length, model.parameters.positions)
    counts = model.vocabulary.counts
    weights = torch.ones(model.parameters.e) if counts is None else counts.double()
    dice = torch.Generator().manual_seed(seed)
    return torch.multinomial(weights, n * length, True, generator=dice).reshape(n, length).tolist()
