"""Do the words fall that W_VO says a head writes? Every head alone, three guesses of its input.

What a head writes for a word depends on what it sees there. Three guesses: the word's *embedding*,
behind the norm of the layer's attention; the state that stands for the word in the layer's
*dictionary*, fitted on other texts; and the *state* that really stood there. Times W_VO each gives
a prediction, read through E with the final gain. At the place of every text where a head moves
most, this head alone is ablated. All three predictions are tested by that one run.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.experiments.ablation import ablate_moves, effects, frequency_ranks
from embspace_helpers.experiments.statistics import ratio_interval
from embspace_helpers.reading.activations import final_states
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.patterns import attention_reads, attention_weights
from embspace_helpers.reading.sources import DATA

HEAD_RESULTS = DATA / "heads.csv"
SOURCES = ("embedding", "dictionary", "state")


class HeadTest:
    """Some texts, run once, in which the heads of `model` are ablated one by one.

    `fit`: the texts that dictionaries are fitted on. `texts`: others, of which the first `length`
    tokens are used; shorter ones are left out. `places`: the n places of whole words in them, as
    (text, position), but never the first position, nor one with fewer than `reach` tokens behind
    it. `ids` (m,): the words that are predicted, those of `keep` (e,), by default all whole words,
    of a bundled model's those seen 200 times. Raises ValueError where fewer than two texts are
    left.
    """

    def __init__(self, model: Model, fit: Sequence[str], texts: Sequence[str], reach: int = 4,
                 length: int = 32, keep: Tensor | None = None):
        """Run the model on the texts."""
        often = 0 if model.vocabulary.counts is None else 200
        keep = model.vocabulary.keep(whole_words=True, min_count=often) if keep is None else keep
        rows = model.tokens(list(texts), length)
        long = [t for t, row in enumerate(rows) if len(row) == length]
        if len(long) < 2:
            raise ValueError(f"{len(long)} texts have {length} tokens: heads are tested on 2 at "
                             "least")
        self.model, self.fit, self.reach, self.keep = model, list(fit), reach, keep
        self.ids = keep.nonzero().squeeze(1)
        self.space = model.space("transpose", keep, output=True)
        self.ranks = frequency_ranks(model.vocabulary, self.ids)
        self.tokens = [rows[t] for t in long]
        self.places = [(t, i) for t, row in enumerate(self.tokens) for i in range(1, length - reach)
                   if keep[row[i]]]
        self.text, self.position = torch.tensor(self.places).T
        self.token = torch.tensor(self.tokens)[self.text, self.position]
        self.reads = [attention_reads(model, texts[t], length) for t in long]  # text, layer: (n, d)
        behind = self.position[:, None] + torch.arange(reach + 1)  # (n, reach + 1)
        everywhere = torch.arange(length).expand(len(long), length)
        self.usual = final_states(model, self.tokens, everywhere)[self.text[:, None], behind]

    def sees(self, layer: int) -> dict[str, Tensor]:
        """What a head of a layer may see at every place, in each of `SOURCES`: (n, d)."""
        p = self.model.parameters
        norm, E_T = p.attention_norm(layer), p.E.T[self.token]
        dictionary = self.model.dictionary(layer, self.fit, "attention", keep=self.keep)
        with torch.no_grad():
            return {"embedding": E_T if norm is None else norm(E_T),
                    "dictionary": dictionary.columns(self.token).T,
                    "state": torch.stack([self.reads[t][layer][i] for t, i in self.places])}

    def written(self, layer: int, head: int, seen: Tensor) -> Tensor:
        """What a head writes at every place if it sees `seen` (n, d) there, less the mean: (n, d).

        The mean over all places is what the head writes whatever it sees.
        """
        return ((seen - seen.mean(0)) @ self.model.parameters.W_VO(layer, head)).dense()

    @torch.no_grad()
    def most_active(self, layer: int, states: Tensor) -> Tensor:
        """The place of every text where each head moves most, (H, texts): rows of `places`.

        That is the length of what it writes for the `states` (n, d), less the mean, times the
        attention that this position and the `reach` that follow pay to the place.
        """
        p, amount = self.model.parameters, []
        for text, reads in enumerate(self.reads):
            seen = attention_weights(self.model, layer, reads[layer]).mT  # (H, seen, looks)
            amount.append(torch.stack([seen[:, i, i : i + self.reach + 1].sum(-1)
                                       for i in self.position[self.text == text].tolist()], 1))
        sizes = [self.written(layer, head, states).norm(dim=1) for head in range(p.H)]
        moved = torch.cat(amount, 1) * torch.stack(sizes)  # (H, n)
        return torch.stack([moved.masked_fill(self.text != text, -1).argmax(1)
                            for text in range(len(self.tokens))], 1)

    def head(self, layer: int, head: int, seen: dict[str, Tensor], chosen: Tensor
             ) -> list[dict[str, float | str]]:
        """Mean changes when a head is ablated at the places `chosen` (texts,): a row a source.

        Of the ten words predicted (`own`, with its 95 % interval over texts), of those predicted
        at another text's place (`other_place`), and of those of the next head of the layer
        (`other_head`): each less words as frequent, in standard deviations over all words.
        """
        change = ablate_moves(self.model, self.tokens, layer, head,
                              [self.places[i] for i in chosen.tolist()], self.ids, self.reach,
                              self.usual[chosen])
        rows: list[dict[str, float | str]] = []
        for source, x in seen.items():
            own, other = (effects(change, self.words(layer, h, x, chosen), self.ranks)
                          for h in (head, (head + 1) % self.model.parameters.H))
            ratio, low, high = ratio_interval(own.size, own.spread)
            rows.append({"seen": source, "own": ratio, "low": low, "high": high,
                         "other_place": (own.other_size.sum() / own.spread.sum()).item(),
                         "other_head": (other.size.sum() / own.spread.sum()).item()})
        return rows

    def words(self, layer: int, head: int, seen: Tensor, chosen: Tensor) -> Tensor:
        """The ten words predicted at the places `chosen` (c,): columns of `ids`, (c, 10)."""
        p, written = self.model.parameters, self.written(layer, head, seen)[chosen]
        top = self.space.top(p.fold(written, p.final_norm()), 10)[1]
        return torch.searchsorted(self.ids, top)

    def layer(self, layer: int) -> pd.DataFrame:
        """All heads of a layer: columns layer, head, texts, and those of `head`."""
        seen = self.sees(layer)
        chosen = self.most_active(layer, seen["state"])
        return pd.DataFrame([{"layer": layer, "head": head, "texts": len(self.tokens), **row}
                             for head, places in enumerate(chosen)
                             for row in self.head(layer, head, seen, places)])
