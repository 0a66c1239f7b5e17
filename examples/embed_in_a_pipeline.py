"""Embeds the images of somebody else's Beam pipeline: here files by a pattern.

    python examples/embed_in_a_pipeline.py 'photos/*/*.jpg' features

FEATURES is what `featuremill extract` wrote: its spec and weights are used, so that the numbers are the same as the
stored ones.
"""

import argparse

import apache_beam as beam
from apache_beam.io import fileio

import featuremill


def main(pattern: str, features: str) -> None:
    stored = featuremill.open_features(features)
    with beam.Pipeline("FnApiRunner") as pipeline:
        images = (
            pipeline
            | fileio.MatchFiles(pattern)
            | fileio.ReadMatches()
            | beam.Map(lambda file: (file.metadata.path, file.read()))
        )
        embedded = images | featuremill.EmbedImages(stored.spec, weights=stored.weights)
        embedded.rows | "Rows" >> beam.Map(lambda row: print(row.key, row.features["embedding"][:3]))
        embedded.failures | "Failures" >> beam.Map(lambda failure: print(failure.key, failure.error))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern")
    parser.add_argument("features")
    main(**vars(parser.parse_args()))
