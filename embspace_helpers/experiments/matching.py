"""Single neurons and heads of two models, matched by their weights and tested by what they do.

Beyond Dar et al. (2023), section 5, which compares layers. The test by function follows Gurnee et
al. (2024), *Universal Neurons*: matched neurons should be active on the same tokens of the same
texts. Neurons are counted through all layers, neuron n of layer l as l · d_ff + n, heads likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from embspace_helpers.experiments.alignment import Kernels, rows_of
from embspace_helpers.reading.activations import ActivationCache, padded
from embspace_helpers.reading.arrays import as_count, as_model
from embspace_helpers.reading.model import Model


@torch.no_grad()
def neuron_rows(a: Model, b: Model, kernels: Kernels, groups: Sequence[str] = ("K", "V"),
                reading: str = "transpose") -> tuple[Tensor, Tensor]:
    """Rows P (n_A, r), Q (n_B, r) of all neurons; P @ Q.T is how alike two of them are.

    A neuron is its key with its value: the measure is the mean of the correlations of the
    `groups`, with their sign. Memory: these rows, not their products.
    """
    a, b = as_model(a), as_model(b)
    pairs = []
    for group in groups:
        x, y = (torch.cat([rows_of(m, group, i, reading) for i in range(m.parameters.L)])
                for m in (a, b))
        pairs.append(kernels.pair(x, y))
    P, Q = (torch.cat(part, 1) for part in zip(*pairs))
    return P / len(pairs), Q


@torch.no_grad()
def best_matches(P: Tensor, Q: Tensor, block: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
    """The best column of every row of P @ Q.T (n, m), its entry, and the best row of every column.

    Indices (n,), entries (n,) and indices (m,), block by block: the product never exists.
    """
    block = as_count(block, name="block")
    if P.ndim != 2 or Q.ndim != 2 or P.shape[1] != Q.shape[1]:
        raise ValueError(f"rows of one length are matched, got {tuple(P.shape)} and "
                         f"{tuple(Q.shape)}")
    score, place = P.new_full((len(P),), -torch.inf), torch.zeros(len(P), dtype=torch.long)
    back, source = P.new_full((len(Q),), -torch.inf), torch.zeros(len(Q), dtype=torch.long)
    for i in range(0, len(P), block):
        for j in range(0, len(Q), block):
            found = P[i:i + block] @ Q[j:j + block].T
            for best, where, axis, here, start in ((score, place, 1, i, j),
                                                   (back, source, 0, j, i)):
                top, index = found.max(axis)
                part = slice(here, here + block)
                better = top > best[part]
                best[part] = torch.where(better, top, best[part])
                where[part] = torch.where(better, index + start, where[part])
    return place, score, source


def mutual_matches(P: Tensor, Q: Tensor, block: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs that are each other's best match: rows (k,), columns (k,), entries (k,), best first."""
    place, score, source = best_matches(P, Q, block)
    rows = (source[place] == torch.arange(len(P))).nonzero().squeeze(1)
    rows = rows[score[rows].argsort(descending=True, stable=True)]
    return rows, place[rows], score[rows]


# ---------------------------------------------------------------- neurons by what they do


def neuron_activity(cache: ActivationCache, positions: Tensor | slice = slice(None)) -> Tensor:
    """Activations of all neurons (L d_ff, n), each at mean 0 and length 1 over the positions.

    Products of two of them are correlations. Zeros for a neuron that never changes.
    """
    if cache.neurons is None:
        raise ValueError("the cache lacks neurons: capture(..., keep='neurons')")
    layers = range(len(cache.neurons))
    active = torch.cat([cache.neurons[i][positions].T for i in layers])  # (L d_ff, n)
    active = active - active.mean(1, keepdim=True)
    return (active / active.norm(dim=1, keepdim=True)).nan_to_num(0, 0, 0)


# ---------------------------------------------------------------- heads


@torch.no_grad()
def head_cosines(a: Model, b: Model, kind: str = "VO", kernels: Kernels | None = None) -> Tensor:
    """Cosines (L_A H_A, L_B H_B) of heads as matrices over the vocabulary, C.T W C.

    `kind`: "VO", what a head moves, or "QK", what it matches. With W = left @ right, the inner
    product of two such matrices is that of left_A.T G left_B and right_A G right_B.T, with the
    kernel G = C_A C_B.T (d_A, d_B): nothing of the vocabulary's size is formed.
    """
    a, b = as_model(a), as_model(b)
    if kind not in ("VO", "QK"):
        raise ValueError(f"kind = {kind!r}: there are 'VO' and 'QK'")
    kernels = Kernels(a, b) if kernels is None else kernels
    left, right = zip(*(_factors(m, kind) for m in (a, b)))  # (heads, d, d_h), (heads, d_h, d)

    def inner(x: Tensor, y: Tensor, G: Tensor) -> Tensor:  # (heads, d, h), (heads', d', h')
        return torch.einsum("adh,df,bfk->abhk", x, G, y)

    products = (inner(left[0], left[1], kernels.ab)
                * inner(right[0].mT, right[1].mT, kernels.ab)).sum((2, 3))
    lengths = [_own(x, y, G) for x, y, G in zip(left, right, (kernels.aa, kernels.bb))]
    return products / torch.outer(*lengths).clamp_min(1e-30)


def _own(left: Tensor, right: Tensor, G: Tensor) -> Tensor:
    """Length (heads,) of every head's matrix over the vocabulary."""
    core = (left.mT @ G @ left) * (right @ G @ right.mT)  # (heads, d_h, d_h)
    return core.sum((1, 2)).clamp_min(0).sqrt()


def _factors(model: Model, kind: str) -> tuple[Tensor, Tensor]:
    """Factors of all heads' matrices, (L H, d, d_h) and (L H, d_h, d)."""
    p = model.parameters
    found = [getattr(p, f"W_{kind}")(i, h) for i in range(p.L) for h in range(p.H)]
    return torch.stack([W.left for W in found]), torch.stack([W.right for W in found])


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    """Attention that gives its patterns, while the block lasts."""
    before = model.model.config._attn_implementation
    model.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.model.set_attn_implementation(before)


@torch.no_grad()
def attention_patterns(model: Model, texts: Sequence[str], length: int = 64,
                       batch: int = 8) -> Tensor:
    """Where every head looks: (L H, n), over all pairs of positions of all texts.

    Pairs are those with the looked-at position before the looking one, the first position left
    out, on which idle heads rest. In each row of attention (one looking position) the mean is
    taken off, so that a head that looks everywhere alike is a row of zeros.
    """
    tokens, parts = model.tokens(texts, length), []
    base = model.model.base_model
    with _eager(model):
        for start in range(0, len(tokens), batch):
            rows = tokens[start:start + batch]
            ids, mask = padded(rows)
            found = base(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
            looks = torch.stack(found, 1).flatten(1, 2)  # (batch, L H, looking, looked at)
            for row, text in zip(rows, looks):
                parts += [text[:, q, 1:q + 1] for q in range(2, len(row))]
    return torch.cat([part - part.mean(1, keepdim=True) for part in parts], 1)


@torch.no_grad()
def written(model: Model, cache: ActivationCache) -> Tensor:
    """What every head writes at every position, less its mean: (L H, n, d)."""
    p = model.parameters
    if cache.subheads is None:
        raise ValueError("the cache lacks subheads: capture(..., keep='subheads')")
    parts = []
    for layer in range(p.L):
        used = cache.subheads[layer].unflatten(-1, (p.H, p.d_h))  # (n, H, d_h)
        parts.append(torch.einsum("nhk,hkd->hnd", used - used.mean(0), p.W_O(layer)))
    return torch.cat(parts)


def row_cosines(x: Tensor, y: Tensor) -> Tensor:
    """Cosines (n, m) of the rows of x (n, k) and y (m, k); 0 for a row of zeros."""
    return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T


def written_cosines(x: Tensor, y: Tensor, kernels: Kernels) -> Tensor:
    """Cosines (heads, heads') of what heads write, over positions and the shared vocabulary.

    x (heads, n, d_A), y (heads', n, d_B) from the same positions, as `written` gives them.
    """
    def length(z: Tensor, G: Tensor) -> Tensor:
        return ((z @ G) * z).sum((1, 2)).clamp_min(0).sqrt()
    products = (x @ kernels.ab).flatten(1) @ y.flatten(1).T
    lengths = torch.outer(length(x, kernels.aa), length(y, kernels.bb))
    return products / lengths.clamp_min(1e-30)
