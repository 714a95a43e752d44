"""Helpers of the course *Analyzing Transformers in embedding space*.

One module a concern; the ideas themselves are written out in the notebooks.

- `models`, `fetch`: load a model; download the two real ones once
- `parameters`: E, K, V, W_Q, W_K, W_V, W_O of any known architecture, in the paper's shapes
- `vocabulary`: readable items, filters; `projection`: readings, top words, tables
- `pairs`: the largest entries of a head's (e, e) matrix; `atlas`: the words of every parameter,
  searchable
- `activations`: capture states and activations, or change them; `overlap`: do the words of active
  parameters stand in the state; `cause`: which words move when a parameter is switched off
- `finetuning`: the paper's classifier, its training, and what changed as a file; `displacement`:
  what that says, by a lexicon, and a classifier without some of its directions
- `statistics`: overlaps, coherence, controls, intervals; `plots`: the course's figure style
- `reviews`, `pretrain`: the reviews that ship, IMDB, and how the bundled models were trained
- `exercises`: checks in notebooks; `notebooks`, `nbval_plugin`: for the course's developers
"""
