"""What the exact 200 largest entries of a head's matrix over all pairs of words cost.

    python tests/benchmarks/bench_pairs.py [--repeat 2]

Against the best blocked float32 product of the same factors, which finds nothing, and against the
dense way: the matrix written out and `topk`. Random factors have GPT-2 medium's shape, for the
dense way an eighth of the rows: all of them take 18 GB. Real heads: four of SmolLM2, all of twin A.
"""

import argparse
from functools import partial

import torch
from measuring import best_of, memory, report

from embspace_helpers import load
from embspace_helpers.reading.largest import bf16_is_fast, largest_entries

K, WORDS, D_HEAD = 200, 50_257, 64
HEADS = {"smollm2": [(0, 0), (5, 2), (15, 3), (25, 7)],
         "twin-a": [(layer, head) for layer in range(6) for head in range(3)]}
WHAT = "top 200 pairs of a head"


def product(A, B, block):
    """A @ B.T in blocks, each into the same memory."""
    buffer = torch.empty(block**2)
    for a in A.split(block):
        for b in B.split(block):
            torch.mm(a, b.T, out=buffer[: len(a) * len(b)].view(len(a), len(b)))


def fastest_product(A, B, repeat):
    """Seconds of the product in the best of three blocks."""
    return min(best_of(repeat, *(partial(product, A, B, block) for block in (512, 1024, 2048))))


def dense(A, B):
    """The matrix written out, the best of each row, the best of these."""
    return (A @ B.T).topk(K, dim=1).values.flatten().topk(K)


def random_factors(repeat):
    """Isotropic: no pair of rows can be left out by their lengths."""
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(WORDS, D_HEAD, generator=generator) for _ in range(2))
    mb = memory(largest_entries, A[: WORDS // 2], B, K)
    mb = max(mb, memory(largest_entries, A, B, K))
    raw, (ours,) = fastest_product(A, B, repeat), best_of(repeat,
                                                          partial(largest_entries, A, B, K))
    slow = 8 * best_of(1, partial(dense, A[: WORDS // 8], B))[0]
    report(WHAT, f"random, {WORDS:,} × {D_HEAD} × {WORDS:,}", ours, against=raw, goal="≤ 1.2",
           mb=mb, other=f"dense {slow / ours:.0f} × as long")


def real_heads(name, repeat):
    """W_QK and W_VO of some heads, through E and F: mean, and the slowest."""
    model = load(name)
    matrices = [model.space(reading).over_words(getattr(model.parameters, kind)(*head))
                for reading in ("transpose", "orthogonal") for head in HEADS[name]
                for kind in ("W_QK", "W_VO")]
    factors = [(W.left, W.right.T.contiguous()) for W in matrices]
    raw = fastest_product(*factors[0], repeat)
    ours = best_of(repeat, *(partial(largest_entries, A, B, K) for A, B in factors))
    m, r = factors[0][0].shape
    report(WHAT, f"{name}, {m:,} × {r} × {m:,}, mean of {len(ours)}", sum(ours) / len(ours),
           against=raw, goal="< 0.5", other=f"the slowest {max(ours) / raw:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    print("bf16 is fast here" if bf16_is_fast() else "bf16 is not fast here")
    random_factors(options.repeat)
    for name in HEADS:
        real_heads(name, options.repeat)


if __name__ == "__main__":
    main()
