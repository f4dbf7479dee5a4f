"""Trains a small classifier of CIFAR-10, or of one's own folders of classes, and writes it to one file.

python -m experiments.cifar_classifier --data_dir=/path/to/cifar10 --output=classifier.safetensors

With it an evaluation says how many of a generator's images show what was asked for.
"""

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import app, flags

from configs import labelled
from p2p_jax import classifier, datasets, report
from p2p_jax.augment import augment
from p2p_jax.classifier import Classifier, Description
from p2p_jax.data.pipeline import Augmentation, Shard, TrainData, evaluation_batches
from p2p_jax.data.records import Record
from p2p_jax.lookup import UserError
from p2p_jax.models import classifier as networks

_DATA = flags.DEFINE_string('data_dir', None, 'CIFAR-10 in any of its forms, or a folder or .zip of classes.')
_OUTPUT = flags.DEFINE_string('output', None, 'File for the classifier.')
_SIZE = flags.DEFINE_integer('size', 32, 'To which the central squares of the images are resized, pixels.')
_WIDTH = flags.DEFINE_integer('width', 32, 'Channels after the first layer.', lower_bound=1)
_EPOCHS = flags.DEFINE_float('epochs', 10.0, 'How often each image is seen.', lower_bound=0.0)
_BATCH = flags.DEFINE_integer('batch_size', 128, 'Images of a step.', lower_bound=1)
_RATE = flags.DEFINE_float('lr', 0.1, 'The highest learning rate, a quarter into the training.', lower_bound=0.0)
_SEED = flags.DEFINE_integer('seed', 0, 'Of everything random.')
_REPORTED = 100  # steps


def optimizer(steps: int, rate: float) -> optax.GradientTransformation:
    """SGD with momentum and weight decay, the rate rising and falling once (Smith and Topin 2018)."""
    schedule = optax.cosine_onecycle_schedule(steps, rate, pct_start=0.25)
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9, nesterov=True))


def scaled(pixels: Any) -> Any:
    """Pixels of 8 or 16 bits in [0, 1]."""
    return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    network: networks.Classifier, optimizer: optax.GradientTransformation, state: Any, batch: Any, key: jax.Array
) -> tuple[Any, jax.Array]:
    """One step on images that are shifted by up to an eighth; returns the new state and the loss."""
    images = 2 * scaled(batch['target']) - 1
    shift = functools.partial(augment, policy=('translation',), value_range=(-1, 1))
    images = jax.vmap(shift)(images, jax.random.split(key, len(images)))
    params, statistics, momentum = state

    def loss(params: Any) -> tuple[jax.Array, Any]:
        variables = {'params': params, 'batch_stats': statistics}
        scores, changed = network.apply(variables, images, train=True, mutable=['batch_stats'])
        each = optax.softmax_cross_entropy_with_integer_labels(scores, batch['condition'])
        return jnp.mean(each), changed['batch_stats']

    (value, statistics), slopes = jax.value_and_grad(loss, has_aux=True)(params)
    updates, momentum = optimizer.update(slopes, momentum, params)
    return (optax.apply_updates(params, updates), statistics, momentum), value


def accuracy(trained: Classifier, records: list[Record]) -> float:
    """The share of the records' images that are recognised."""
    right = []
    batches = evaluation_batches(records, batch_size=256, crop_size=None, channels=3, shard=Shard(), threads=None)
    for batch in batches:
        labels = np.array([records[i].label for i in batch['index']])
        found = trained.predict(scaled(batch['target'])) == labels
        right += found[batch['mask'] > 0].tolist()
    return float(np.mean(right))


def configuration() -> ml_collections.ConfigDict:
    """The data as configs/labelled.py has them: the same test images, whatever the generator was trained with."""
    config = labelled.get_config()
    config.data.update(dir=_DATA.value, crop_size=_SIZE.value, resize=_SIZE.value)
    return config


def train(records: list[Record], network: networks.Classifier, steps: int) -> Any:
    """Returns the variables after so many steps."""
    config = configuration()
    data = TrainData(
        records,
        batch_size=_BATCH.value,
        channels=3,
        labels=True,
        balanced=True,
        augmentation=Augmentation(_SIZE.value, flip=True, rotate=False),
        seed=_SEED.value,
        cache_mb=config.data.cache_mb,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        shard=Shard(),
    )
    key = jax.random.key(_SEED.value)
    variables = network.init(key, jnp.zeros((1, _SIZE.value, _SIZE.value, 3)), train=False)
    rule = optimizer(steps, _RATE.value)
    state = variables['params'], variables['batch_stats'], rule.init(variables['params'])
    start, losses = time.monotonic(), []
    for step, batch in enumerate(data.batches(0, steps), 1):
        state, loss = train_step(network, rule, state, batch, jax.random.fold_in(key, step))
        losses.append(loss)
        if step % _REPORTED == 0 or step == steps:
            left = (time.monotonic() - start) / step * (steps - step)
            print(f'step {step}/{steps} | ETA {report.duration(left)} | loss {np.mean(losses):.3f}', flush=True)
            losses = []
    return {'params': state[0], 'batch_stats': state[1]}


def main(_: list[str]) -> None:
    """Trains, scores and writes."""
    if Path(_OUTPUT.value).is_dir():
        raise UserError(f'--output={_OUTPUT.value}: that is a folder; expected a file')
    networks.check_size(_SIZE.value)
    config = configuration()
    splits = datasets.find_splits(config, ('train', 'val', 'test'))
    classes = tuple(datasets.with_classes(config, splits).data.classes)
    records = splits['train'] + splits['val']
    steps = max(round(_EPOCHS.value * len(records) / _BATCH.value), 1)
    network = networks.Classifier(len(classes), _SIZE.value, _WIDTH.value)
    print(f'{len(records)} images of {len(classes)} classes; {len(splits["test"])} others for the test', flush=True)
    start = time.process_time()
    variables = train(records, network, steps)
    description = Description(classes, _SIZE.value, _WIDTH.value, 0.0, len(splits['test']), steps)
    share = accuracy(Classifier(description, variables), splits['test'])
    taken = report.duration(time.process_time() - start)
    print(f'test accuracy {share:.2%} on {len(splits["test"])} images; {taken} of all cores together')
    description = Description(classes, _SIZE.value, _WIDTH.value, share, len(splits['test']), steps)
    classifier.save(Path(_OUTPUT.value), Classifier(description, variables))
    print(f'written: {_OUTPUT.value}')


if __name__ == '__main__':
    flags.mark_flags_as_required(['data_dir', 'output'])
    try:
        app.run(main)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None
