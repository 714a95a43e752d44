"""The model card of a bundled language model: what it is, what it was trained on, how well."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

KINDS = {"GPT-2": "tied embeddings, no dropout, erf GELU",
         "GPT-NeoX": "untied embeddings, rotary positions on a quarter of each head, parallel "
                     "blocks, no dropout, erf GELU"}
CARD = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A small language model of movie reviews with {r.architecture}'s architecture, made for the course
*Analyzing Transformers in embedding space*: to be read, not to be used. {parameters:.1f} M
parameters: d = {r.d}, {r.layers} layers, {r.heads} heads, {r.vocabulary} tokens in the vocabulary
(byte-level BPE), {r.context} positions, {kind}. Seed {r.seed}.
Weights in float16.

| | |
| --- | --- |
| held-out perplexity per token | **{perplexity:.2f}** ({loss:.3f} nats; {bits:.3f} bits per \
byte), the float16 weights |
| the same for token frequencies alone | {unigram:.0f} |
| tokens seen | {tokens:.1f} M ({epochs} of {epoch:.1f} M) |
| wall time | {minutes:.0f} minutes, {machine}, torch {torch}, bf16 autocast |

## Data
The train and unsupervised parts of the Large Movie Review Dataset (IMDB), without duplicates and
every text that also stands in the test part: {data[train_reviews]:,} reviews to train on;
{data[held_out_reviews]:,} more, chosen by a hash of the text, were held out. `<br />` removed. The
data set is free to use for research with this citation:

> Andrew L. Maas, Raymond E. Daly, Peter T. Pham, Dan Huang, Andrew Y. Ng, Christopher Potts.
> *Learning Word Vectors for Sentiment Analysis.* ACL 2011.

No review is part of this repository. `token_counts.json` counts every token in the training texts.

## Loss curve
| M tokens | training loss | held-out loss | held-out perplexity |
| --- | --- | --- | --- |
{rows}

AdamW (0.9, 0.95), learning rate {r.learning_rate:g} (warm-up of {r.warmup_steps} steps, the last
{r.decay_share:.0%} down to zero), weight decay {r.weight_decay:g} on matrices, batches of
{r.batch} x {r.context} tokens, gradient norm clipped at 1.

## A sample (seed 0, top-50 sampling, prompt "This movie")
> {sample}

## Limits
It knows English only as movie reviews write it, repeats what reviewers think and how they say it,
prejudices and coarse words included, and states nothing reliably. Trained again with

    python -m embspace_helpers.pretrain {name} --data stanfordnlp/imdb --epochs {r.epochs:g}
"""


def model_card(name: str, parameters: int, data: dict[str, Any], log: dict[str, Any], loss: float,
               machine: str, sample: str) -> str:
    """Return the README.md of a trained model.

    `parameters`: how many. `data`, `log`: what `prepare` and `train` gave. `loss`: on the held-out
    texts, in nats per token. `machine`: where it was trained. `sample`: a text that it wrote.
    """
    recipe, curve = SimpleNamespace(**log["recipe"]), log["curve"]
    counts = np.bincount(data["train"], minlength=recipe.vocabulary) + 1
    unigram = -np.log(counts / counts.sum())[data["held_out"]].mean()
    bits = loss * len(data["held_out"]) / math.log(2) / data["held_out_bytes"]
    rows = "\n".join(f"| {p['tokens'] / 1e6:.0f} | {p['train_loss']:.3f} "
                     f"| {p['held_out_loss']:.3f} | {math.exp(p['held_out_loss']):.1f} |"
                     for p in curve)
    return CARD.format(
        name=name, r=recipe, kind=KINDS[recipe.architecture], parameters=parameters / 1e6,
        epochs=f"{recipe.epochs:g} epoch" + "s" * (recipe.epochs != 1),
        tokens=curve[-1]["tokens"] / 1e6, epoch=len(data["train"]) / 1e6,
        minutes=log["seconds"] / 60, machine=machine, torch=torch.__version__.split("+")[0],
        loss=loss, perplexity=math.exp(loss), bits=bits, unigram=math.exp(unigram), rows=rows,
        sample=sample.replace("\n", " "), data=data,
    )
