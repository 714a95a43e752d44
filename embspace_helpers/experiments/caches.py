"""What an experiment takes from an activation cache, or a sentence that says what it lacks."""

from collections.abc import Sequence

from torch import Tensor

from embspace_helpers.reading.activations import ActivationCache
from embspace_helpers.reading.arrays import as_index


def kept(cache: ActivationCache, name: str, layer: int | None = None) -> Tensor:
    """The states, neurons, values or subheads of a cache: (L, n, ...), or of a layer, (n, ...).

    A layer counts from 0. Raises ValueError where the cache lacks them, or there is no such layer.
    """
    check_kept(cache, [name])
    found = getattr(cache, name)
    return found if layer is None else found[as_index(layer, len(found), "layer")]


def check_kept(cache: ActivationCache, names: Sequence[str], purpose: str = "") -> None:
    """Raise ValueError where a cache lacks one of `names`; `purpose`: what begins the sentence."""
    lacking = [name for name in names if getattr(cache, name) is None
               or not len(getattr(cache, name))]
    if lacking:
        raise ValueError(f"{purpose}the cache needs {' and '.join(names)}, and lacks "
                         f"{' and '.join(lacking)}: capture(..., keep={tuple(names)!r}) keeps them")
