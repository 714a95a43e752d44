"""Average Jacobians against torch's own, on tiny models in float64."""

import pytest
import torch
from tiny_configs import DECODERS
from tiny_models import close, random, tiny_model

from embspace_helpers.experiments.jacobians import average_jacobians, read_space, write_space
from embspace_helpers.reading.activations import hooked, run

ROWS = [[1, 2, 3, 4, 5, 6, 8], [7, 8, 9, 3], [3, 1, 4, 1, 5, 9, 2], [11, 12]]
TEXTS = [" ".join(map(str, row)) for row in ROWS]
SKIP = 2


def maps(model, row):
    """By torch: d x_l / d h_0 (L, T, d, T, d), and the stream's last state by those behind blocks.

    The second, for every layer, is the change at all positions with that of a vector added there.
    """
    p, embed = model.parameters, model.model.get_input_embeddings()
    start = embed(torch.tensor([row])).detach()

    def states_of(first):
        states = []
        hooks = [(embed, lambda *_: first, False)]
        hooks += [(p.reader(i, "ff"), lambda _, x: states.append(x[0].reshape(1, -1, p.d)), True)
                  for i in range(p.L)]
        with hooked(hooks):
            run(model, [row])
        return torch.stack([x[0] for x in states])

    def last_with(layer):
        def last(added):
            found = []

            def add(module, inputs, output):
                tuple_ = isinstance(output, tuple)
                moved = (output[0] if tuple_ else output) + added
                return (moved, *output[1:]) if tuple_ else moved

            def keep(module, inputs, output):
                found.append((output[0] if isinstance(output, tuple) else output)[0])

            with hooked([(p.blocks[layer], add, False), (p.blocks[-1], keep, False)]):
                run(model, [row])
            return found[0]
        return last

    jacobian = torch.autograd.functional.jacobian
    zero = torch.zeros_like(start)
    return (jacobian(states_of, start)[:, :, :, 0],
            [jacobian(last_with(i), zero)[:, :, 0] for i in range(p.L)])


def expected(model):
    """Read, write and write here, averaged by loops: each (L, d, d)."""
    sums, n = [0, 0, 0], 0
    for row in ROWS:
        used = range(SKIP, len(row) - 1)
        if used:
            read, write = maps(model, row)
        for q in used:
            sums[0] += read[:, q, :, q]
            sums[1] += torch.stack([sum(J[t, :, q] for t in used) for J in write])
            sums[2] += torch.stack([J[q, :, q] for J in write])
            n += 1
    return [x / n for x in sums], n


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_against_torch_and_the_mean_over_signs(kind):
    model = tiny_model(kind)
    (read, write, here), n = expected(model)
    draws = [average_jacobians(model, TEXTS, skip=SKIP, batch=2, seed=s) for s in range(30)]
    assert draws[0].n == n == 9
    close(torch.stack(draws[0].write), write)  # no signs in it
    for name, exact in (("read", read), ("write_here", here)):
        found = torch.stack([torch.stack(getattr(x, name)) for x in draws])  # (30, L, d, d)
        error = found.mean(0) - exact
        assert error.norm() < 0.35 * (found - exact).flatten(1).norm(dim=1).mean()


@pytest.mark.parametrize("kind", DECODERS)
def test_one_position_needs_no_average_over_signs(kind):
    """The last block's values reach the last state as they are; in each type of model."""
    model = tiny_model(kind)
    found = average_jacobians(model, [TEXTS[0]], skip=5)
    assert found.n == 1 and len(found.read) == model.parameters.L
    close(found.write[-1], torch.eye(model.parameters.d))
    for one, other in zip(found.write, found.write_here):
        close(one, other)  # later positions are left out
    assert all(x.norm() > 0.01 for x in found.read)


def test_read_alone_exactly():
    model = tiny_model("gpt2")
    found = average_jacobians(model, [TEXTS[0]], skip=5)
    close(torch.stack(found.read), maps(model, ROWS[0])[0][:, 5, :, 5])


def test_spaces_score_by_the_products_they_say():
    model = tiny_model("gpt2")
    p, x, J = model.parameters, random(3, 12), random(12, 12, seed=4)
    keep = torch.ones(p.e, dtype=torch.bool)
    states = J @ p.E  # (d, e): the change that each embedding makes
    close(read_space(model, J, keep).scores(x), x @ (states - states.mean(1, keepdim=True)))
    close(write_space(model, J, keep).scores(x), p.fold(x @ J.T, p.final_norm()) @ p.E)


def test_what_is_refused():
    with pytest.raises(ValueError, match="no text has more than 17 tokens"):
        average_jacobians(tiny_model("gpt2"), TEXTS)
