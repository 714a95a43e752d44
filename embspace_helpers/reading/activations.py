"""Run a model on texts and keep what its parameters did there, or change it: hooks, always removed.

`capture` keeps, at sampled positions, the states and how strongly every FF neuron and every
subhead was active: an activation cache. `set_neurons` and `set_values` change single activations
while a `with` block lasts (0 is an ablation): they turn a reading into a prediction that can fail.

Notation of Dar et al. (2023), section 2: an FF block is f(x K.T) V, so neuron i adds its
coefficient times row i of V; head h adds the sum of its subheads' coefficients times rows of W_O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from embspace_helpers.reading.arrays import as_count, as_index, as_model, as_texts

if TYPE_CHECKING:
    from embspace_helpers.reading.model import Model

Hook = Callable[..., object]
Tokens = list[list[int]]  # the token ids of every text
BAR_AFTER = 20  # seconds: short runs show no progress bar
KEPT = ("states", "keys", "neurons", "values", "subheads")


class SomeLayers:
    """Tensors of some layers, behind the numbers that all L layers have: `x[layer]`, or `x[-1]`."""

    def __init__(self, found: Tensor, layers: Sequence[int], L: int):
        """`found` (len(layers), n, ...) holds the layers named."""
        self.found, self.L = found, L
        self.place = {layer: i for i, layer in enumerate(layers)}

    def __len__(self) -> int:
        """Return the number L of layers, kept or not."""
        return self.L

    def __getitem__(self, place: int | tuple) -> Tensor:
        """The tensor of one layer, (n, ...); a tuple goes on within it, as in x[layer, rows].

        Raises ValueError for a layer that was not kept.
        """
        layer, *rest = place if isinstance(place, tuple) else (place,)
        layer = as_index(layer + self.L if layer < 0 else layer, self.L, "layer")
        if layer not in self.place:
            raise ValueError(f"layer {layer} was not kept: capture(..., layers=...) asked for "
                             f"{', '.join(map(str, self.place))}")
        found = self.found[self.place[layer]]
        return found[tuple(rest)] if rest else found

    @property
    def dtype(self) -> torch.dtype:
        """Kind of number."""
        return self.found.dtype


@dataclass(frozen=True)
class ActivationCache:
    """What happened at n positions of some texts; every first axis is the layer.

    `tokens`: the token ids of every text. `text`, `position`, `token` (n,): which text, which
    position in it, which token stands there. `states` (L, n, d): the stream behind each block.
    `keys`: for every kind of FF key its pre-activations (L, n, d_ff). `neurons` (L, n, d_ff): the
    coefficients that rows of V are written with. `values` (L, n, H_kv d_h): what the key-value
    heads offer there, x W_V and bias, head by head. `subheads` (L, n, H d_h): the coefficients
    that rows of W_O are written with. What was not asked for is None (`keys`: empty). Where only
    some layers were asked for, `neurons[layer]` and the like give these, and refuse the others.
    """

    tokens: Tokens
    text: Tensor
    position: Tensor
    token: Tensor
    states: Tensor | SomeLayers | None
    keys: dict[str, Tensor | SomeLayers]
    neurons: Tensor | SomeLayers | None
    values: Tensor | SomeLayers | None
    subheads: Tensor | SomeLayers | None

    def __len__(self) -> int:
        """Return the number n of positions."""
        return len(self.token)


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook, bool]]) -> Iterator[None]:
    """Hooks on modules while the block lasts, removed even after an error.

    Each is (module, function, before): `before` a hook on the module's input, called with
    (module, inputs); else one on its output, called with (module, inputs, output). As torch has
    it, what a hook returns, if anything, takes the place of the input or output.
    """
    with ExitStack() as stack:
        for module, function, before in hooks:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(function).remove)
        yield


def tokenize(model: Model, texts: Sequence[str] | str, length: int = 256) -> Tokens:
    """Token ids of every text, with the tokenizer's own extras.

    At most `length` of each, and no more than the model has positions for. One text alone counts
    as a list of one. Raises ValueError for no texts, an empty one, and a tokenizer that is not
    this model's.
    """
    model = as_model(model)
    texts = as_texts(texts)
    length = as_count(length, name="length")
    most = min(length, model.parameters.positions,
               getattr(model.tokenizer, "model_max_length", length))
    rows = model.tokenizer(texts, truncation=True, max_length=most)["input_ids"]
    empty = [i for i, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(f"texts {empty[:5]} are empty: nothing to run the model on")
    if (largest := max(map(max, rows))) >= model.parameters.e:
        raise ValueError(f"the tokenizer gives token {largest}, the model has "
                         f"{model.parameters.e} tokens: they belong to different models")
    return rows


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor (n, longest), zeros on the right, and its mask of 0 and 1."""
    tensors = [torch.tensor(row) for row in rows]
    mask = [torch.ones_like(row) for row in tensors]
    pad = nn.utils.rnn.pad_sequence
    return pad(tensors, batch_first=True), pad(mask, batch_first=True)


def sample_places(lengths: Sequence[int], positions: int | None, skip: int = 0,
                  seed: int = 0) -> Tensor:
    """Draw (text, place) pairs, (n, 2), in reading order, from texts of these lengths.

    `positions`: how many (None, or more than there are: all). `skip`: leave out the first so many
    of each text. Raises ValueError if none is left, or for numbers that make no sense.
    """
    if positions is not None:
        positions = as_count(positions, name="positions")
    skip = as_count(skip, name="skip", least=0)
    all_places = torch.tensor([(t, p) for t, n in enumerate(lengths) for p in range(skip, n)])
    if not len(all_places):
        raise ValueError(f"no positions: all {len(lengths)} texts have at most {skip} tokens, "
                         f"and the first {skip} are skipped")
    if positions is None or positions >= len(all_places):
        return all_places
    drawn = torch.randperm(len(all_places), generator=torch.Generator().manual_seed(seed))
    return all_places[drawn[:positions].sort().values]


@torch.no_grad()
def capture(model: Model, texts: Sequence[str] | str, positions: int | None = 1000,
            keep: Sequence[str] | str = KEPT, length: int = 256, batch: int = 8, skip: int = 0,
            seed: int = 0, layers: Sequence[int] | None = None) -> ActivationCache:
    """Run `model` on `texts` and return the activation cache of `positions` sampled positions.

    `keep`: of states, keys, neurons, values, subheads, those that are wanted. `length`: tokens
    per text. `skip`: leave out the first so many positions of each text. `layers`: default all.
    Memory beyond the model: a forward pass of `batch` texts, and positions x layers x what is
    kept. Texts run in order of their length, which matters to hooks of your own. Raises ValueError
    for an unknown name in `keep` or texts without positions.
    """
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if unknown := [name for name in keep if name not in KEPT]:
        raise ValueError(f"cannot keep {', '.join(map(repr, unknown))}: there are "
                         f"{', '.join(KEPT)}")
    batch, tokens = as_count(batch, name="batch"), tokenize(model, texts, length)
    places = sample_places([len(row) for row in tokens], positions, skip, seed)  # (n, 2)
    L = model.parameters.L
    chosen_layers = range(L) if layers is None else [as_index(i, L, "layer") for i in layers]
    keepers = _Keepers(model, keep, places, chosen_layers)
    by_length = sorted(places[:, 0].unique().tolist(), key=lambda t: len(tokens[t]))
    with hooked(keepers.hooks()):
        for start in tqdm(range(0, len(by_length), batch), unit="batch", leave=False,
                          delay=BAR_AFTER, desc="running the model"):
            chosen = by_length[start : start + batch]
            keepers.expect(chosen)
            run(model, [tokens[t] for t in chosen])
    token = torch.tensor([tokens[t][p] for t, p in places.tolist()])
    found = keepers.found if layers is None else {
        name: SomeLayers(x, chosen_layers, L) for name, x in keepers.found.items()}
    return ActivationCache(tokens, places[:, 0], places[:, 1], token, found.get("states"),
                           {k: found[k] for k in model.parameters.key_kinds if k in found},
                           found.get("neurons"), found.get("values"), found.get("subheads"))


def run(model: Model, tokens: Sequence[Sequence[int]]) -> Tensor:
    """One forward pass over rows of token ids; the last hidden states (n, longest, d)."""
    ids, mask = padded(tokens)
    device = next(model.model.parameters()).device
    found = model.model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device))
    return found.last_hidden_state


class _Keepers:
    """Hooks that keep what is wanted at sampled places, (n, 2), of the texts that run.

    The tensors of `found` are made at the first pass and filled in place, so that nothing is ever
    held twice.
    """

    def __init__(self, model: Model, keep: Sequence[str], places: Tensor, layers: Sequence[int]):
        self.places = places
        self.found: dict[str, Tensor] = {}
        p, blocks = model.parameters, [model.parameters.blocks[i] for i in layers]
        parts = {"values": [p.values_of(i) for i in layers]}  # modules, and which of their outputs
        parts |= {kind: [p.keys_of(i, kind) for i in layers] for kind in p.key_kinds}
        modules = {name: [module for module, _ in part] for name, part in parts.items()}
        modules |= {"states": blocks, "neurons": [p.entry.value(b) for b in blocks],
                    "subheads": [p.entry.output(b) for b in blocks]}
        names = [name for name in keep if name != "keys"] + [*p.key_kinds] * ("keys" in keep)
        self.wanted = {name: modules[name] for name in names}
        self.columns = {name: part[0][1].flatten() for name, part in parts.items()}

    def hooks(self) -> list[tuple[nn.Module, Hook, bool]]:
        """The hooks, for `hooked`: coefficients are a module's input, all else its output."""
        return [(module, self._keeper(name, i), name in ("neurons", "subheads"))
                for name, modules in self.wanted.items() for i, module in enumerate(modules)]

    def expect(self, texts: Sequence[int]) -> None:
        """Say which texts run next, as rows 0, 1, ... of a batch."""
        at = [(self.places[:, 0] == t).nonzero().squeeze(1) for t in texts]  # rows of places
        self.row = torch.cat([torch.full((len(a),), i) for i, a in enumerate(at)])
        self.at, self.texts = torch.cat(at), len(texts)

    def _keeper(self, name: str, i: int) -> Hook:
        def hook(module: nn.Module, inputs: tuple, output: Any = None) -> None:
            tensor = inputs if output is None else output
            tensor = tensor[0] if isinstance(tensor, tuple) else tensor
            tensor = tensor.detach().reshape(self.texts, -1, tensor.shape[-1])  # OPT's FF: flat
            position = self.places[self.at, 1].to(tensor.device)
            kept = tensor[self.row.to(tensor.device), position].cpu()  # (places, w)
            kept = kept[:, self.columns[name]] if name in self.columns else kept
            if name not in self.found:
                size = (len(self.wanted[name]), len(self.places), kept.shape[-1])
                self.found[name] = torch.empty(size, dtype=kept.dtype)
            self.found[name][i, self.at] = kept
        return hook


# ---------------------------------------------------------------- changing what happens


@contextmanager
def set_neurons(model: Model, layer: int, row: Tensor, position: Tensor, neuron: Tensor,
                value: Tensor | float = 0.0) -> Iterator[None]:
    """While the block lasts, set FF coefficients: neuron[i] of sequence row[i] at position[i].

    Index tensors (m,) or single numbers, `value` (m,) or one number for all; 0 ablates the neuron
    there. Raises ValueError for neurons that do not exist.
    """
    p = model.parameters
    row, position, neuron = _indices(row, position, neuron)
    _check_numbers("neuron", neuron, p.d_ff)

    shape: list[int] = []  # batch, positions: an FF block may get them as one axis (OPT)

    def note(module: nn.Module, inputs: tuple) -> None:
        shape[:] = inputs[0].shape[:2]

    def hook(module: nn.Module, inputs: tuple) -> tuple:
        changed = inputs[0].clone(memory_format=torch.contiguous_format)
        changed.view(*shape, -1)[row, position, neuron] = torch.as_tensor(
            value, dtype=changed.dtype, device=changed.device)
        return changed, *inputs[1:]

    block = p.blocks[as_index(layer, p.L, "layer")]
    with hooked([(p.entry.output(block), note, True), (p.entry.value(block), hook, True)]):
        yield


@contextmanager
def set_values(model: Model, layer: int, row: Tensor, position: Tensor, head: Tensor | int,
               value: Tensor | float = 0.0) -> Iterator[None]:
    """While the block lasts, set what key-value head head[i] offers at position[i] of row[i].

    Whatever query head looks there then finds `value` (m, d_h), or one number, in place of
    x W_V + b: with 0, this head moves nothing from there. `head` counts key-value heads. Raises
    ValueError for heads that do not exist.
    """
    p = model.parameters
    row, position, head = _indices(row, position, head)
    _check_numbers("key-value head", head, p.H_kv)
    module, columns = p.values_of(layer)

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[row[:, None], position[:, None], columns[head]] = torch.as_tensor(
            value, dtype=changed.dtype, device=changed.device)
        return changed

    with hooked([(module, hook, False)]):
        yield


def _indices(*numbers: Tensor | int) -> tuple[Tensor, ...]:
    """Index tensors (m,) of one length, from tensors, lists or single numbers."""
    return tuple(torch.broadcast_tensors(*(torch.as_tensor(x).reshape(-1) for x in numbers)))


def _check_numbers(what: str, numbers: Tensor, count: int) -> None:
    if numbers.min() < 0 or numbers.max() >= count:
        raise ValueError(f"{what}s are 0 to {count - 1}, but {numbers.tolist()} were asked for")


@torch.no_grad()
def final_states(model: Model, tokens: Sequence[Sequence[int]], position: Tensor,
                 change: Callable[[Tensor], AbstractContextManager] | None = None,
                 batch: int = 32) -> Tensor:
    """The model's last hidden states, behind its final norm, at position[i] of the row tokens[i].

    `position` (m,), or (m, r) for r positions in every row; the states are (m, d), or (m, r, d).
    Times E_out, these are the logits (of a decoder). `change(chosen)` gives what is in force while
    a batch runs, such as `set_neurons`; chosen (b,) says which of the m stand in its rows 0 to
    b - 1. Raises ValueError where a position lies outside its row, or for no rows.
    """
    if not len(tokens) or len(tokens) != len(position):
        raise ValueError(f"{len(tokens)} rows of tokens and {len(position)} positions: one each, "
                         "and at least one")
    spans = position.reshape(len(position), -1).aminmax(dim=1)
    outside = [i for i, (row, low, high) in enumerate(zip(tokens, spans.min, spans.max))
               if low < 0 or high >= len(row)]
    if outside:
        raise ValueError(f"{len(outside)} of {len(position)} positions lie outside their row")
    states: list[Tensor] = [torch.empty(0)] * len(tokens)
    for chosen in torch.tensor([len(row) for row in tokens]).argsort(stable=True).split(batch):
        with change(chosen) if change else nullcontext():
            found = run(model, [tokens[i] for i in chosen])
        order = torch.arange(len(chosen)).reshape(-1, *[1] * (position.ndim - 1))
        last = found[order.to(found.device), position[chosen].to(found.device)]
        for i, state in zip(chosen.tolist(), last.cpu()):
            states[i] = state
    return torch.stack(states)
