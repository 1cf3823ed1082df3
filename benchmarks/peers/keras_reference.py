"""The reference work in Keras: its custom CNN, or its frozen MobileNetV2 (random weights: only time counts)."""

import argparse
import json
import math
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("network", choices=("cnn", "mobilenetv2"))
parser.add_argument("folder")
parser.add_argument("--test-folder", help="validate on these images, not on a fifth of the others")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--until", type=float, default=math.inf)
parser.add_argument("--seconds", type=float, default=math.inf)
options = parser.parse_args()

tf.config.threading.set_intra_op_parallelism_threads(int(os.environ.get("OMP_NUM_THREADS", "0")))
keras.utils.set_random_seed(options.seed)
reading = {"image_size": (100, 100), "color_mode": "grayscale", "batch_size": 256, "seed": 42, "verbose": False}
if options.test_folder:
    train, val = (
        keras.utils.image_dataset_from_directory(folder, **reading) for folder in (options.folder, options.test_folder)
    )
else:
    train, val = keras.utils.image_dataset_from_directory(
        options.folder, validation_split=0.2, subset="both", **reading
    )
classes = len(train.class_names)
augmentation = keras.Sequential(
    [
        keras.layers.RandomRotation(0.2),
        keras.layers.RandomZoom(0.1),
        keras.layers.RandomTranslation(0.1, 0.1),
        keras.layers.RandomContrast(0.1),
    ]
)
train = train.cache().map(lambda x, y: (augmentation(x, training=True), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
val = val.cache().prefetch(tf.data.AUTOTUNE)
if options.network == "cnn":
    layers = [
        keras.layers.Conv2D(64, 5, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 5, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(classes, activation="softmax"),
    ]
else:
    backbone = keras.applications.MobileNetV2((224, 224, 3), include_top=False, weights=None)
    backbone.trainable = False
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Resizing(224, 224),
        keras.layers.Concatenate(),
        backbone,
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(classes, activation="softmax"),
    ]
inputs = outputs = keras.Input((100, 100, 1))
for layer in layers:
    outputs = layer([outputs] * 3 if isinstance(layer, keras.layers.Concatenate) else outputs)
model = keras.Model(inputs, outputs)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])


class Clock(keras.callbacks.Callback):
    """Print a line an epoch; end training when the goal is reached, or within an epoch when time is up."""

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.time()

    def on_batch_end(self, batch, logs=None):
        self.model.stop_training |= time.time() - float(os.environ["BENCHMARK_START"]) >= options.seconds

    def on_epoch_end(self, epoch, logs=None):
        now = time.time()
        row = {"epoch": epoch + 1, "epoch_seconds": now - self.started, "val_accuracy": logs["val_accuracy"]}
        seconds = now - float(os.environ["BENCHMARK_START"])
        print(json.dumps({**row, "seconds": seconds}), flush=True)
        self.model.stop_training |= logs["val_accuracy"] >= options.until


model.fit(train, validation_data=val, epochs=options.epochs, verbose=0, callbacks=[Clock()])
sys.exit(0)
