"""What a Keras user writes in ten minutes: a folder of class folders in, one Parquet file out.

Run as `python benchmarks/keras_script.py FOLDER OUT.parquet`. It forgets keys and failures, keeps all features in
memory, and can't resume. Its weights are drawn, which costs what loading them costs.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

folder, output = sys.argv[1:]
keras.utils.set_random_seed(0)
base = keras.applications.VGG19(include_top=False, weights=None, pooling="avg")
photos = keras.utils.image_dataset_from_directory(
    folder, image_size=(224, 224), batch_size=32, shuffle=False, verbose=False
)
pixels = photos.map(lambda images, labels: keras.applications.vgg19.preprocess_input(images))
features = base.predict(pixels.prefetch(tf.data.AUTOTUNE), verbose=0)
column = pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1])
pq.write_table(pa.table({"embedding": column}), output)
print(len(features))
