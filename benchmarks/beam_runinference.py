"""What a Beam user writes: RunInference over decoded images, and Beam's own Parquet sink.

Run as `python benchmarks/beam_runinference.py FOLDER OUT`. The handler is made by hand, because Beam's own one for
TensorFlow needs tensorflow_hub, which no longer imports beside a current setuptools; it calls the model the same way.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import apache_beam as beam
import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, RunInference
from PIL import Image

BATCH = 32


class Vgg19(ModelHandler):
    """Loads the base once per process and runs it on batches of at most `BATCH`."""

    def load_model(self):
        keras.utils.set_random_seed(0)
        model = keras.applications.VGG19(include_top=False, weights=None, pooling="avg")
        return tf.function(lambda pixels: model(pixels, training=False), reduce_retracing=True)

    def run_inference(self, batch, model, inference_args=None):
        return list(model(tf.constant(np.stack(batch))).numpy())

    def batch_elements_kwargs(self):
        return {"min_batch_size": BATCH, "max_batch_size": BATCH}


def decode(path):
    with Image.open(path) as image:
        pixels = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return path, keras.applications.vgg19.preprocess_input(np.asarray(pixels, np.float32))


def main(folder, output):
    paths = sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())
    schema = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float32()))])
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        (
            pipeline
            | "Paths" >> beam.Create(paths)
            | "Spread" >> beam.Reshuffle()
            | "Decode" >> beam.Map(decode)
            | "Embed" >> RunInference(KeyedModelHandler(Vgg19()))
            | "Row" >> beam.Map(lambda pair: {"key": pair[0], "embedding": pair[1].tolist()})
            | "Write" >> beam.io.WriteToParquet(output, schema)
        )
    print(len(paths))


if __name__ == "__main__":
    main(*sys.argv[1:])
