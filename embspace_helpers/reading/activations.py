"""Run a model on texts and keep what its parameters did there, or change it: hooks, always removed.

`capture` keeps, at sampled positions, the states and how strongly every FF neuron and every
subhead was active. `set_neurons` and `set_values` change single activations while a `with` block
lasts: they turn a reading into a prediction that can fail.

Notation of Dar et al. (2023), section 2: an FF block is f(x K.T) V, so neuron i adds its
coefficient times row i of V; head h adds the sum of its subheads' coefficients times rows of W_O.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from embspace_helpers.reading.parameters import Parameters

Hook = Callable[..., object]
BAR_AFTER = 20  # seconds: short runs show no progress bar
KEPT = ("states", "keys", "neurons", "values", "subheads")


@dataclass(frozen=True)
class Record:
    """What happened at n positions of some texts; every first axis is the layer.

    `text`, `place`, `token` (n,): which text, which position in it, which vocabulary item stands
    there. `states` (L, n, d): the stream behind each block. `keys`: for every kind of FF key its
    pre-activations (L, n, d_ff). `neurons` (L, n, d_ff): the coefficients that rows of V are
    written with. `values` (L, n, H_kv d_h): what the key-value heads offer there, x W_V and bias,
    head by head. `subheads` (L, n, H d_h): the coefficients that rows of W_O are written with.
    What was not asked for is None (`keys`: empty).
    """

    text: Tensor
    place: Tensor
    token: Tensor
    states: Tensor | None
    keys: dict[str, Tensor]
    neurons: Tensor | None
    values: Tensor | None
    subheads: Tensor | None

    def __len__(self) -> int:
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


def cut_texts(model: nn.Module, tokenizer, texts: Sequence[str], length: int) -> list[list[int]]:
    """Vocabulary ids of every text, with the tokenizer's own extras.

    At most `length` of each, and no more than `model` has positions for. Raises ValueError for no
    texts or an empty one.
    """
    if not texts:
        raise ValueError("no texts were given")
    places = getattr(model.config, "max_position_embeddings", length)
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    if tables and (first := getattr(tables[0], "padding_idx", None)) is not None:
        places -= first + 1  # RoBERTa's positions begin behind that of the padding
    most = min(length, places, getattr(tokenizer, "model_max_length", length))
    ids = tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]
    empty = [i for i, row in enumerate(ids) if not row]
    if empty:
        raise ValueError(f"texts {empty[:5]} are empty: nothing to run the model on")
    return ids


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
    if (positions is not None and positions < 1) or skip < 0:
        raise ValueError(f"positions = {positions} must be at least 1, skip = {skip} at least 0")
    all_places = torch.tensor([(t, p) for t, n in enumerate(lengths) for p in range(skip, n)])
    if not len(all_places):
        raise ValueError(f"no positions: all {len(lengths)} texts have at most {skip} items, "
                         f"and the first {skip} are skipped")
    if positions is None or positions >= len(all_places):
        return all_places
    drawn = torch.randperm(len(all_places), generator=torch.Generator().manual_seed(seed))
    return all_places[drawn[:positions].sort().values]


@torch.no_grad()
def capture(model: nn.Module, tokenizer, texts: Sequence[str], positions: int | None = 1000,
            keep: Sequence[str] = KEPT, length: int = 256, batch: int = 8, skip: int = 0,
            seed: int = 0) -> Record:
    """Run `model` on `texts` and return a Record of `positions` sampled positions.

    `keep`: of states, keys, neurons, values, subheads, those that are wanted. `length`: vocabulary
    items per text. `skip`: leave out the first so many positions of each text. Memory beyond the
    model: a forward pass of `batch` texts, and positions x layers x what is kept. Texts run in
    order of their length, which matters to hooks of your own. Raises ValueError for an unknown
    name in `keep` or texts without positions.
    """
    unknown = set(keep) - set(KEPT)
    if unknown:
        raise ValueError(f"cannot keep {', '.join(sorted(unknown))}: there are {', '.join(KEPT)}")
    params, rows = Parameters(model), cut_texts(model, tokenizer, texts, length)
    width = params.H_kv * params.d_h  # of the values; a fused map has them last
    places = sample_places([len(row) for row in rows], positions, skip, seed)  # (n, 2)
    wanted, found = _wanted(params, keep), {}
    by_length = sorted(places[:, 0].unique().tolist(), key=lambda t: len(rows[t]))
    for start in tqdm(range(0, len(by_length), batch), unit="batch", leave=False, delay=BAR_AFTER,
                      desc="running the model"):
        chosen = by_length[start : start + batch]
        at = [(places[:, 0] == t).nonzero().squeeze(1) for t in chosen]  # rows of places
        row = torch.cat([torch.full((len(a),), i) for i, a in enumerate(at)])
        at = torch.cat(at)
        _run(model, [rows[t] for t in chosen], wanted, found, at, row, places, width)
    token = torch.tensor([rows[t][p] for t, p in places.tolist()])
    return Record(places[:, 0], places[:, 1], token, found.get("states"),
                  {kind: found[kind] for kind in params.key_kinds if kind in found},
                  found.get("neurons"), found.get("values"), found.get("subheads"))


def _wanted(params: Parameters, keep: Sequence[str]) -> dict[str, tuple[list[nn.Module], bool]]:
    """Name of what is kept -> (its module in every layer, whether its input is what we want)."""
    entry, blocks = params.entry, params.blocks
    wanted = {}
    if "states" in keep:
        wanted["states"] = (blocks, False)
    if "keys" in keep:
        for kind in params.key_kinds:
            wanted[kind] = ([entry.keys(b)[kind] for b in blocks], False)
    if "neurons" in keep:
        wanted["neurons"] = ([entry.value(b) for b in blocks], True)
    if "values" in keep:
        wanted["values"] = ([entry.queries_keys_values(b)[-1] for b in blocks], False)
    if "subheads" in keep:
        wanted["subheads"] = ([entry.output(b) for b in blocks], True)
    return wanted


def _run(model, rows, wanted, found: dict[str, Tensor], at: Tensor, row: Tensor,
         places: Tensor, width: int) -> None:
    """One forward pass over `rows`; what is wanted at the places numbered `at` goes to `found`.

    `row` says which of the rows each stands in, `width` how wide values are. The tensors of
    `found` are made at the first pass and filled in place, so that nothing is ever held twice.
    """
    def keeper(name: str, layer: int) -> Hook:
        def hook(module, inputs, output=None):
            tensor = inputs if output is None else output
            tensor = tensor[0] if isinstance(tensor, tuple) else tensor  # (batch, positions, w)
            tensor = tensor[..., -width:] if name == "values" else tensor
            if name not in found:
                size = (len(wanted[name][0]), len(places), tensor.shape[-1])
                found[name] = torch.empty(size, dtype=tensor.dtype)
            place = places[at, 1].to(tensor.device)
            found[name][layer, at] = tensor.detach()[row.to(tensor.device), place].cpu()
        return hook

    hooks = [(module, keeper(name, layer), before) for name, (modules, before) in wanted.items()
             for layer, module in enumerate(modules)]
    ids, mask = padded(rows)
    device = next(model.parameters()).device
    with hooked(hooks):
        model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device))


# ---------------------------------------------------------------- changing what happens


@contextmanager
def set_neurons(params: Parameters, layer: int, row: Tensor, place: Tensor, neuron: Tensor,
                value: Tensor | float) -> Iterator[None]:
    """While the block lasts, set FF coefficients: neuron[i] of sequence row[i] at place[i].

    Index tensors (m,), `value` (m,) or one number for all; 0 switches the neuron off there. Raises
    ValueError for neurons that do not exist.
    """
    _check_numbers("neuron", neuron, params.d_ff)

    def hook(module, inputs):
        changed = inputs[0].clone()  # (batch, positions, d_ff)
        changed[row, place, neuron] = torch.as_tensor(value, dtype=changed.dtype,
                                                      device=changed.device)
        return changed, *inputs[1:]

    with hooked([(params.entry.value(params.blocks[layer]), hook, True)]):
        yield


@contextmanager
def set_values(params: Parameters, layer: int, row: Tensor, place: Tensor, head: Tensor | int,
               value: Tensor | float = 0.0) -> Iterator[None]:
    """While the block lasts, set what key-value head head[i] offers at place[i] of row[i].

    Whatever head looks there then finds `value` (m, d_h), or one number, in place of x W_V + b:
    with 0, this head moves nothing from there. `head` counts key-value heads. Raises ValueError
    for heads that do not exist.
    """
    _check_numbers("key-value head", torch.as_tensor(head), params.H_kv)
    modules = params.entry.queries_keys_values(params.blocks[layer])
    start = 0 if len(modules) > 1 else (params.H + params.H_kv) * params.d_h  # fused: Q, K, V

    def hook(module, inputs, output):
        changed = output.clone()
        first = start + torch.as_tensor(head).reshape(-1, 1) * params.d_h
        columns = first + torch.arange(params.d_h)  # (m, d_h)
        changed[row[:, None], place[:, None], columns] = torch.as_tensor(
            value, dtype=changed.dtype, device=changed.device)
        return changed

    with hooked([(modules[-1], hook, False)]):
        yield


def _check_numbers(what: str, numbers: Tensor, count: int) -> None:
    if numbers.min() < 0 or numbers.max() >= count:
        raise ValueError(f"{what}s are 0 to {count - 1}, but {numbers.tolist()} were asked for")


@torch.no_grad()
def final_states(model: nn.Module, rows: Sequence[Sequence[int]], place: Tensor,
                 change: Callable[[Tensor], AbstractContextManager] | None = None,
                 batch: int = 32) -> Tensor:
    """The model's last hidden states, behind its final norm, at place[i] of the ids rows[i].

    `place` (m,), or (m, r) for r places in every row; the states are (m, d), or (m, r, d). Times
    E_out, these are the logits (of a decoder). `change(chosen)` gives what is in force while a
    batch runs, such as `set_neurons`; chosen (b,) says which of the m stand in its rows 0 to b - 1.
    Raises ValueError where a place lies outside its row, or for no rows.
    """
    if not len(rows) or len(rows) != len(place):
        raise ValueError(f"{len(rows)} rows and {len(place)} places: one each, and at least one")
    spans = place.reshape(len(place), -1).aminmax(dim=1)
    outside = [i for i, (row, low, high) in enumerate(zip(rows, spans.min, spans.max))
               if low < 0 or high >= len(row)]
    if outside:
        raise ValueError(f"{len(outside)} of {len(place)} places lie outside their row")
    device = next(model.parameters()).device
    states = [None] * len(rows)
    for chosen in torch.tensor([len(row) for row in rows]).argsort(stable=True).split(batch):
        ids, mask = padded([rows[i] for i in chosen])
        with change(chosen) if change else nullcontext():
            found = model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device))
        order = torch.arange(len(chosen)).reshape(-1, *[1] * (place.ndim - 1))
        last = found.last_hidden_state[order.to(device), place[chosen].to(device)]
        for i, state in zip(chosen.tolist(), last.cpu()):
            states[i] = state
    return torch.stack(states)
