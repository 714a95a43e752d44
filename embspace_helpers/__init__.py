"""Helpers of the course *Analyzing Transformers in embedding space*.

Four rooms; the ideas themselves are written out in the notebooks.

- `reading`: a model as words: models and their parameters, vocabularies, readings, pairs, activations
- `experiments`: atlas, overlap, ablation, fine-tuning, displacement, and the statistics they share
- `classroom`: figures, exercises, movie reviews
- `workshop`: for the course's developers: fetching and training the models, running the notebooks
"""

# `python -m embspace_helpers.fetch` finds its command there; each command is a file of that folder.
__path__.append(f"{__path__[0]}/workshop/commands")
