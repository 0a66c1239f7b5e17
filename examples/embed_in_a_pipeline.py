"""Embeds the images of somebody else's Beam pipeline: here files by a pattern.

    python examples/embed_in_a_pipeline.py 'photos/*/*.jpg' features

FEATURES is what `featuremill extract` wrote: its spec is used, so that the numbers are the same as the stored ones.
"""

import argparse

import apache_beam as beam
from apache_beam.io import fileio

from featuremill import EmbedImages, open_features
from transforms.network.weights import source_of
from transforms.store.manifest import read_manifest


def main(pattern: str, features: str) -> None:
    spec = open_features(features).spec
    weights = source_of(read_manifest(features).weights)
    with beam.Pipeline("FnApiRunner") as pipeline:
        images = (
            pipeline
            | fileio.MatchFiles(pattern)
            | fileio.ReadMatches()
            | beam.Map(lambda file: (file.metadata.path, file.read()))
        )
        embedded = images | EmbedImages(spec, weights=weights)
        embedded.rows | "Rows" >> beam.Map(lambda row: print(row.key, row.features["embedding"][:3]))
        embedded.failures | "Failures" >> beam.Map(lambda failure: print(failure.key, failure.error))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern")
    parser.add_argument("features")
    main(**vars(parser.parse_args()))
