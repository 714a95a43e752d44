"""The one-page portrait of a model: notebook 08's figure, for any model that `load` takes.

Every number is measured as the notebooks measure it: the readable share with mixtures as control
(02), copying through the dictionary of the layer (03), ablation against other neurons' words (04).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from embspace_helpers.classroom import plots
from embspace_helpers.experiments import ablation
from embspace_helpers.experiments.readability import CHANCE, census, coherence, reading_of
from embspace_helpers.reading.activations import ActivationCache, capture
from embspace_helpers.reading.arrays import as_count
from embspace_helpers.reading.judge import Judge
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.pairs import copying_score

LAYERS, NEURONS = 6, 100  # how many layers are read, and neurons of each
WORDS = 1500  # whole words over which copying is scored, evenly spaced in the vocabulary
OTHERS = 20  # neurons whose words are the control of an ablation


@dataclass(frozen=True)
class Portrait:
    """What was measured; `draw` makes the page of it.

    `shares`: group, layer, reading, vectors, mixtures. `copying` (L, H). `neurons`: a line of
    text for an early, a middle and a late one. `effect`: the change, in logits, of the late
    neuron's own words and the mean of other neurons' words, when it is ablated; None for an
    encoder.
    """

    name: str
    facts: str
    shares: pd.DataFrame
    copying: Tensor
    neurons: list[str]
    effect: tuple[float, float] | None


def portrait(model: Model, texts: Sequence[str], judge: Judge | None = None,
             n: int = NEURONS) -> Portrait:
    """Measure the portrait of a model: dictionaries are fitted on `texts`, which also run.

    `judge`: default the model's own; `model.judged_by(load("minilm"))` makes one for any model.
    `n` neurons of a layer are read. Raises ValueError as the experiments it calls.
    """
    judge = model.judge if judge is None else judge
    p, layers = model.parameters, chosen_layers(model)
    n = as_count(n, p.d_ff, "n", "neurons")
    model.fit_dictionaries(texts)
    keys = census(model, (p.key_kinds[0],), ("transpose", "dictionary"), layers, n, texts, judge)
    values = census(model, ("V",), ("transpose",), layers, n, texts, judge)
    shares = pd.concat([keys, values], ignore_index=True).query("sign == '+'")
    cache = capture(model, texts[:12], None, ("states", "neurons"), skip=1, layers=layers)
    found = [_neuron(model, layer, shares, texts, judge, cache, n)
             for layer in (layers[0], layers[len(layers) // 2], layers[-1])]
    effect = None
    if p.entry.causal:
        effect = ablation_of(model, cache, layers[-1], found[-1][1])
    return Portrait(model.name, facts(model), shares, copying_of_heads(model, texts),
                    [line for line, _ in found], effect)


def chosen_layers(model: Model, n: int = LAYERS) -> list[int]:
    """At most n layers, evenly spaced from the first to the last."""
    last = model.parameters.L - 1
    return sorted({round(i * last / max(n - 1, 1)) for i in range(n)})


def facts(model: Model) -> str:
    """What a checklist asks about the architecture, in a line."""
    p = model.parameters
    norm = "norms in the stream" if p.entry.normed_stream else (
        "LayerNorm" if p.entry.centred_norm else "RMSNorm")
    heads = f"{p.H} heads" + (f" in {p.H_kv} groups" if p.H_kv != p.H else "")
    parts = [f"{p.architecture}, {'decoder' if p.entry.causal else 'encoder'}", f"{p.L} layers",
             f"d = {p.d}", f"{p.d_ff} neurons" + (", gated" if len(p.key_kinds) > 1 else ""),
             heads, norm, f"{p.entry.position} positions", "tied" if p.tied else "untied"]
    return " · ".join(parts + ["parallel blocks"] * p.parallel)


def _neuron(model: Model, layer: int, shares: pd.DataFrame, texts: Sequence[str], judge: Judge,
            cache: ActivationCache, n: int) -> tuple[str, int]:
    """The most coherent of n keys through the better reading of its layer: its line, its number."""
    p = model.parameters
    kind = p.key_kinds[0]
    rows = shares[(shares["group"] == kind) & (shares["layer"] == layer)]
    better = rows.loc[rows["vectors"].idxmax(), "reading"]
    space = reading_of(model, kind, layer, better, texts, judge.keep)
    sampled = torch.arange(n) * p.d_ff // n
    best = int(sampled[coherence(space, judge, p.K(layer, kind)[sampled])[0].argmax()])
    sign = ablation.used_signs(cache, layer)[best]
    out = reading_of(model, "V", layer, "transpose", None, judge.keep)
    looks, says = space.words(p.K(layer, kind)[best], 6), out.words(sign * p.V(layer)[best], 6)
    through = "E" if better == "transpose" else "dictionary"
    return (f"L{layer}N{best} looks for ({through}): {', '.join(looks)}; "
            f"writes: {', '.join(says)}", best)


def copying_of_heads(model: Model, texts: Sequence[str] | None) -> Tensor:
    """The copying score of every head, (L, H): read through its layer's dictionary, written by E.

    Over whole words that stand in the vocabulary, `WORDS` of them at most.
    """
    p = model.parameters
    words = model.vocabulary.keep(whole_words=True).nonzero().squeeze(1)
    keep = torch.zeros(p.e, dtype=torch.bool)
    keep[words[torch.arange(min(WORDS, len(words))) * len(words) // min(WORDS, len(words))]] = True
    rows = []
    for layer in range(p.L):
        read = model.dictionary(layer, texts, "attention", keep)
        out = reading_of(model, "W_O", layer, "transpose", None, keep)
        rows.append([copying_score(read, p.W_VO(layer, head), right=out) for head in range(p.H)])
    return torch.tensor(rows)


def ablation_of(model: Model, cache: ActivationCache, layer: int,
                neuron: int) -> tuple[float, float]:
    """Ablate a neuron where it is most active: change of its words, mean change of others' words.

    Words are the ten that its value raises, with the sign in use; those of `OTHERS` neurons of
    its layer are the control. Each change is less that of words as frequent, in logits.
    """
    p = model.parameters
    space = reading_of(model, "V", layer, "transpose", None,
                       model.vocabulary.keep(whole_words=True))
    others = [i for i in range(0, p.d_ff, max(1, p.d_ff // (OTHERS + 1))) if i != neuron][:OTHERS]
    rows = torch.tensor([neuron, *others])
    values = p.V(layer)[rows] * ablation.used_signs(cache, layer)[rows, None]
    columns = torch.searchsorted(space.ids, space.top(values, 10)[1])  # (1 + others, 10)
    change, _ = ablation.ablate_neurons(model, cache, layer, rows[:1], space.ids)
    ranks = ablation.frequency_ranks(model.vocabulary, space.ids)
    size = ablation.effects(change.expand(len(rows), -1), columns, ranks).size
    return size[0].item(), size[1:].mean().item()


# ---------------------------------------------------------------- the page


def draw(found: Portrait) -> Figure:
    """The page: readable keys and values by layer, copying of every head, and lines of text."""
    figure, axes = plots.panels(f"{found.name}: what can be read of it", "keys", "values",
                                "heads: copying score", width=12, height=4.4)
    lines = (("keys", "transpose", "E", 0), ("keys", "dictionary", "dictionary", 2),
             ("values", "transpose", "E", 0))
    for panel, reading, label, index in lines:
        rows = found.shares[(found.shares["group"] == "V") == (panel == "values")]
        rows, ax = rows[rows["reading"] == reading], axes[panel == "values"]
        plots.curve(ax, rows["layer"], rows["vectors"], label=label, index=index)
        ax.plot(rows["layer"], rows["mixtures"], color=plots.COLOURS[index], linestyle=":",
                linewidth=1.4, label=f"{label}, mixtures")
    top = found.shares[["vectors", "mixtures"]].to_numpy().max()
    for ax in axes[:2]:
        plots.chance_line(ax, CHANCE)
        ax.set_ylim(0, max(0.4, 1.1 * top))
        plots.caption(ax, "layer", "readable share" if ax is axes[0] else "")
    plots.heatmap(axes[2], found.copying.T, _numbers(found.copying.shape[1]),
                  _numbers(found.copying.shape[0]), "standard deviations", centre=0)
    axes[2].set(xlabel="layer", ylabel="head")
    figure.supxlabel("\n".join(text_of(found)), x=0.01, ha="left", fontsize=9.5)
    return figure


def text_of(found: Portrait) -> list[str]:
    """The lines under the figure."""
    heads = found.copying.flatten().topk(min(3, found.copying.numel()))
    best = ", ".join("L{}H{} ({:.1f})".format(*divmod(i, found.copying.shape[1]), x)
                     for i, x in zip(heads.indices.tolist(), heads.values.tolist()))
    late = found.neurons[-1].split()[0]
    cut = "an encoder: its head stands between the last state and the logits" if (
        found.effect is None) else (f"its words {found.effect[0]:+.1f} logits, those of other "
                                    f"neurons {found.effect[1]:+.1f}").replace("-", "−")
    return [found.facts, *found.neurons, f"heads that copy most: {best}", f"{late} ablated: {cut}"]


def _numbers(n: int) -> list[str]:
    """0 to n - 1, every one of a few, else every fifth."""
    return [str(i) if n <= 12 or i % 5 == 0 else "" for i in range(n)]
