"""Build atlases before they are needed: `python -m embspace_helpers.atlas [names]`.

    python -m embspace_helpers.atlas smollm2 --workers 2
    python -m embspace_helpers.atlas smollm2 --scheduler tcp://host:8786

Cut off and run again, it goes on with the layers that are missing. With `--workers` so many
processes of this machine share the layers out, with `--scheduler` those of a dask cluster, on any
number of machines: they need this package and one cache folder (EMBSPACE_CACHE). dask comes with
`pip install -e ".[dask]"`.
"""

import argparse
import sys
import time
from functools import lru_cache
from typing import Any

from tqdm.auto import tqdm

from embspace_helpers.experiments.atlas import load_atlas
from embspace_helpers.experiments.atlas_build import Build, known_build
from embspace_helpers.experiments.atlas_lists import DICTIONARY
from embspace_helpers.reading.sources import MODELS, ModelNotFound
from embspace_helpers.reading.spaces import READINGS


@lru_cache(maxsize=1)
def _build(name: str, reading: str) -> Build:
    """The build that a process takes part in; its model stays loaded between tasks."""
    return known_build(name, reading)


def build_layer(layer: int, name: str, reading: str) -> int:
    """One task: build a layer of a model's atlas, wherever this process runs. Returns the layer."""
    _build(name, reading).layer(layer)
    return layer


def share_out(client: Any, name: str, reading: str) -> None:
    """Have the processes of a dask cluster build the layers that are missing, one task a layer."""
    from dask.distributed import as_completed

    missing = known_build(name, reading).missing()
    tasks = client.map(build_layer, missing, name=name, reading=reading, pure=False)
    for task in tqdm(as_completed(tasks), desc=f"atlas of {name}", unit="layer", total=len(tasks)):
        task.result()


def cluster(workers: int | None, scheduler: str | None) -> Any:
    """A client of the scheduler with this address, or of so many new processes of one thread.

    Leaves with a sentence where dask is not there.
    """
    try:
        from dask.distributed import Client
    except ImportError:
        sys.exit('dask is not installed: pip install -e ".[dask]"')
    if scheduler:
        return Client(scheduler)
    return Client(n_workers=workers, threads_per_worker=1, dashboard_address=":0")


def main(arguments: list[str] | None = None) -> None:
    """Build the atlases that are missing, of all known models or of those named."""
    parser = argparse.ArgumentParser("python -m embspace_helpers.atlas", description=main.__doc__)
    parser.add_argument("names", nargs="*", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--reading", default="orthogonal", choices=(*READINGS, DICTIONARY),
                        help="dictionary: keys, W_Q, W_K and W_V through the dictionary of their "
                             "layer, fitted on embedded reviews (default %(default)s)")
    parser.add_argument("--workers", type=int, help="share the layers out among so many processes")
    parser.add_argument("--scheduler", help="or among those of the dask cluster with this address")
    args = parser.parse_args(arguments)
    client = cluster(args.workers, args.scheduler) if args.workers or args.scheduler else None
    try:
        for name in args.names or MODELS:
            start = time.perf_counter()
            if client is not None:
                share_out(client, name, args.reading)
            atlas = load_atlas(name, args.reading)
            folder = atlas.files.folder
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            print(f"{name}: {len(atlas):,} rows, {size:.1f} MB, "
                  f"{time.perf_counter() - start:.1f} s: {folder}")
    except ModelNotFound as error:
        sys.exit(str(error))
    finally:
        if client is not None:
            client.close()
