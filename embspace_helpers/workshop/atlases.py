"""Build atlases before they are needed: `python -m embspace_helpers.atlas [names]`."""

import argparse
import sys
import time

from embspace_helpers.experiments.atlas import atlas_path, load_atlas
from embspace_helpers.reading.sources import MODELS, ModelNotFound


def main(arguments: list[str] | None = None) -> None:
    """Build the atlases that are missing, of all known models or of those named."""
    parser = argparse.ArgumentParser("python -m embspace_helpers.atlas", description=main.__doc__)
    parser.add_argument("names", nargs="*", help=f"default: {' '.join(MODELS)}")
    for name in parser.parse_args(arguments).names or MODELS:
        start = time.perf_counter()
        try:
            atlas = load_atlas(name)
        except ModelNotFound as error:
            sys.exit(str(error))
        path, seconds = atlas_path(name), time.perf_counter() - start
        size = path.stat().st_size / 1e6 if path.is_file() else 0
        print(f"{name}: {len(atlas.rows):,} rows, {size:.1f} MB, {seconds:.1f} s: {path}")
