"""Keras networks of the tutorials, small; written for Keras 3 as for Keras 2 (`tf_keras`), which is handed in."""

from __future__ import annotations

from typing import Any

import numpy as np


def simple_unet(
    keras: Any, *, channels: int = 1, classes: int = 1, base: int = 2, depth: int = 4, side: int = 32
) -> Any:
    """The net of many microscopy tutorials: `base` filters (16 in them) and more, up-sampled tensor first."""
    layers = keras.layers

    def block(x: Any, filters: int, rate: float) -> Any:
        x = layers.Conv2D(filters, (3, 3), activation="relu", kernel_initializer="he_normal", padding="same")(x)
        x = layers.Dropout(rate)(x)
        return layers.Conv2D(filters, (3, 3), activation="relu", kernel_initializer="he_normal", padding="same")(x)

    image = x = layers.Input((side, side, channels))
    skips = []
    for level in range(depth):
        x = block(x, base << level, 0.1)
        skips.append(x)
        x = layers.MaxPooling2D((2, 2))(x)
    x = block(x, base << depth, 0.3)
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(base << level, (2, 2), strides=(2, 2), padding="same")(x)
        x = block(layers.concatenate([x, skips[level]]), base << level, 0.1)
    ending = "sigmoid" if classes == 1 else "softmax"
    return keras.Model(inputs=[image], outputs=[layers.Conv2D(classes, (1, 1), activation=ending)(x)])


def nearest_unet(keras: Any, *, base: int = 2, depth: int = 4, side: int = 32) -> Any:
    """The net with nearest upsampling and 2x2 convolutions: `base` filters (64 in them) and more, skip first."""
    layers = keras.layers

    def convolution(x: Any, filters: int, size: int = 3) -> Any:
        return layers.Conv2D(filters, size, activation="relu", padding="same", kernel_initializer="he_normal")(x)

    image = x = layers.Input((side, side, 1))
    skips = []
    for level in range(depth + 1):
        x = convolution(convolution(x, base << level), base << level)
        if level >= depth - 1:
            x = layers.Dropout(0.5)(x)
        if level < depth:
            skips.append(x)
            x = layers.MaxPooling2D(pool_size=(2, 2))(x)
    for level in reversed(range(depth)):
        x = convolution(layers.UpSampling2D(size=(2, 2))(x), base << level, 2)
        x = layers.concatenate([skips[level], x], axis=3)
        x = convolution(convolution(x, base << level), base << level)
    x = convolution(x, 2)
    return keras.Model(inputs=image, outputs=layers.Conv2D(1, 1, activation="sigmoid")(x))


def mixed_unet(keras: Any, *, side: int = 32) -> Any:
    """Everything else that the importer reads: batch norm, separate activations, bilinear, padding, a sum."""
    layers = keras.layers
    image = layers.Input((side, side, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(x)
    skip = x = layers.LeakyReLU(0.2)(layers.BatchNormalization()(x))
    x = layers.AveragePooling2D(2)(x)
    x = layers.ZeroPadding2D(((1, 1), (1, 1)))(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(layers.Conv2D(8, 3)(x)))
    x = layers.Add()([x, layers.Activation("tanh")(layers.Conv2D(8, (2, 4), padding="same")(x))])
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = layers.Concatenate(axis=-1)([skip, x])
    x = layers.Conv2DTranspose(6, 3, padding="same", activation="relu")(x)
    x = layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x))
    x = layers.SpatialDropout2D(0.2)(x)
    return keras.Model(image, layers.Softmax()(layers.Conv2D(3, 1)(x)))


def randomise(model: Any, seed: int) -> None:
    """Weights and batch statistics drawn so that values keep their size."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) == 4:
            fan_in = shape[0] * shape[1] * min(shape[2:])
            weight.assign(random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))
        elif any(word in weight.name for word in ("variance", "gamma")):
            weight.assign(random.uniform(0.5, 1.5, shape).astype(np.float32))
        else:
            weight.assign(random.normal(0, 0.2, shape).astype(np.float32))
