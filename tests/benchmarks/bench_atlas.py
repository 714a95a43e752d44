"""What an atlas costs beyond its matrix products, in seconds and in memory.

    python tests/benchmarks/bench_atlas.py [smollm2] [--layers 2] [--repeat 2] [--readings ...]

Real weights of a model, and random ones at GPT-2 medium's shape. The products alone are those of
all vectors with E, 512 at a time, with all tokens at once and in tiles of 4,096; the faster counts.
The atlas has its head directions, words of both signs, coherence and files beside them.
Goals on a quiet machine: at most 1.2 times the products; memory that does not grow with the layers.
On a busy one, OMP_NUM_THREADS=1 and the processor's seconds tell more than the clock.
"""

import argparse
import multiprocessing
import tempfile

import measuring
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from embspace_helpers import Model, load
from embspace_helpers.experiments.atlas_build import Build, texts_of
from embspace_helpers.experiments.atlas_lists import group_vectors, reading_map
from embspace_helpers.reading.judge import Judge
from embspace_helpers.reading.ranking import TILE

RANDOM = "GPT-2 medium, random"


def random_medium(layers):
    """A model of GPT-2 medium's shape and its judge, both random."""
    config = GPT2Config(n_embd=1024, n_head=16, n_layer=layers)
    torch.manual_seed(0)
    words = {f"word{i}": i for i in range(config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "word0")), unk_token="word0")
    model = Model(GPT2LMHeadModel(config).eval(), tokenizer)
    judge = Judge(torch.randn(384, config.vocab_size), torch.arange(1, 16_000), config.vocab_size)
    return model, judge


def made(name, layers):
    """A model and its judge."""
    if name == RANDOM:
        return random_medium(layers)
    model = load(name)
    return model, model.judge


def vectors(model, reading, texts, layers):
    """All vectors of these layers, mapped: a list of (n, d) of at most 512 rows."""
    params, found = model.parameters, []
    for layer in range(layers):
        for group in Build(model, "", reading).about["groups"].split():
            x, map = group_vectors(params, group, layer)[0], reading_map(model, group, layer,
                                                                         reading, texts)
            found.append(x if map is None else x @ map)
    return list(torch.cat(found).split(512))


def products(rows, E, tile):
    """The products alone, `tile` tokens at a time, into one piece of memory."""
    out = torch.empty(512, E.shape[1])
    for y in rows:
        for start in range(0, E.shape[1], tile):
            torch.mm(y, E[:, start : start + tile], out=out[: len(y), start : start + tile])


def build(model, judge, reading, texts, layers):
    """Build so many layers of the atlas, into files."""
    with tempfile.TemporaryDirectory() as folder:
        job = Build(model, folder, reading, texts=texts, judge=judge)
        for layer in range(layers):
            job.layer(layer)


def measure_memory(name, layers, results):
    """Put how far the peak, in MB, lies above a model with its space and its judge."""
    model, judge = made(name, layers)
    model.space("orthogonal").covariance  # noqa: B018
    results.put(measuring.memory(build, model, judge, "orthogonal", None, layers))


def memory(name, layers):
    """What `measure_memory` finds, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    context.Process(target=measure_memory, args=(name, layers, results)).start()
    return results.get()


def compare(name, reading, options):
    """Print seconds and their ratio; return those of the processor, and how many vectors."""
    model, judge = made(name, options.layers)
    texts = texts_of(reading, None)
    rows, E = vectors(model, reading, texts, options.layers), model.parameters.E
    model.space("orthogonal").moments  # noqa: B018
    tasks = [(products, rows, E, E.shape[1]), (products, rows, E, TILE),
             (build, model, judge, reading, texts, options.layers)]
    times = [[measuring.seconds(*task) for task in tasks] for _ in range(options.repeat)]
    wall, cpu = ([min(run[i][j] for run in times) for i in range(3)] for j in range(2))
    print(f"{name}, {reading}: {sum(map(len, rows)):,} vectors of {options.layers} layers, d = "
          f"{model.parameters.d}, e = {model.parameters.e:,}, {torch.get_num_threads()} threads, "
          f"best of {options.repeat}")
    for what, i in (("products, all tokens at once", 0), ("products in tiles", 1), ("atlas", 2)):
        print(f"{what:29}{wall[i]:8.1f} s on the clock {cpu[i]:8.1f} s of the processor")
    print(f"{'ratio to the faster products':29}{wall[2] / min(wall[:2]):8.2f}"
          f"                {cpu[2] / min(cpu[:2]):8.2f}")
    return cpu, sum(map(len, rows))


def main():
    """Print seconds, their ratio, and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["smollm2", RANDOM],
                        help=f"names of models, or {RANDOM!r}")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--readings", nargs="*", default=["orthogonal"])
    options = parser.parse_args()
    for name in options.names:
        found = {reading: compare(name, reading, options) for reading in options.readings}
        peaks = [memory(name, layers) for layers in (1, options.layers)]
        print(f"peak beyond the model, of 1 and of {options.layers} layers: "
              f"{peaks[0]:,.0f} MB and {peaks[1]:,.0f} MB")
        for reading, (cpu, n) in found.items():
            measuring.report("atlas", f"{name}, {n:,} vectors, {reading}", cpu[2],
                             against=min(cpu[:2]), goal="≤ 1.2", mb=peaks[-1])


if __name__ == "__main__":
    main()
