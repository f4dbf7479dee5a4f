"""A resumed training against one that was never interrupted."""

import shutil

import jax
import numpy as np
import pytest

from p2p_jax.checkpoint import FOLDER
from p2p_jax.job import build_job
from p2p_jax.train import train
from tests import trees
from tests.test_train import read_log, restore

# A schedule by steps, which does not stretch with the length of the training.
_OPTIM = {'optim.name': 'adamw', 'optim.weight_decay': 0.1, 'optim.clip_norm': 0.1, 'optim.warmup_steps': 3}
_OPTIM |= {'optim.schedule': 'step', 'optim.decay_every': 5}


# The rate falls at once and often; D by its own loss.
_PLATEAU = {'optim.schedule': 'plateau', 'optim.final_lr': 1e-6, 'optim.plateau_patience': 0, 'optim.decay_factor': 0.5}
# Of 1×1 convolutions, which compile fast.
_PIXELWISE = {'discriminator.patchgan.strided': 0, 'discriminator.patchgan.unstrided': 2}
_MULTISCALE = {'discriminator.name': 'multiscale'}
_MULTISCALE |= {
    f'discriminator.multiscale.{key}': value
    for key, value in {'scales': 2, 'strided': 1, 'unstrided': 0, 'width': 8, 'norm': 'spectral'}.items()
}


@pytest.mark.parametrize(
    'changes',
    [
        {'ema.decay': 0.9, 'generator.unet.norm': 'batch', 'discriminator.patchgan.norm': 'spectral'}
        | {'gan.mode': 'wgan_gp', **_PIXELWISE},
        {'gan.weight': 0.0, 'degrade.name': 'poisson_gaussian', 'loss.ssim.weight': 1.0} | _OPTIM,
        {'gan.start_step': 3, 'generator.name': 'resnet', 'generator.resnet.blocks': 1, 'generator.resnet.width': 4}
        | {'generator.resnet.dropout': 0.5, **_PIXELWISE},
        {'gan.start_step': 1, 'gan.pretrain_steps': 3, 'gan.d_steps': 2, 'gan.feature_weight': 1.0}
        | {'optim.plateau_metric': 'train_psnr', 'optim.plateau_every': 'step', **_PLATEAU, **_MULTISCALE}
        | {'optim.discriminator.plateau_metric': 'loss', 'train.accumulate': 2},
        # Stopped and resumed between two evaluations.
        {'gan.weight': 0.0, 'optim.plateau_metric': 'loss', 'eval.every_steps': 3, **_PLATEAU}
        | {'optim.plateau_threshold': 0.9, 'train.patience': 9},
        {'generator.name': 'dcgan', 'discriminator.name': 'dcgan', 'loss.l1.weight': 0.0, 'data.rotate': False}
        | {'generator.dcgan.width': 4, 'discriminator.dcgan.width': 4, 'gan.d_steps': 2, 'ema.decay': 0.9}
        | {'gan.augment': ('color', 'translation', 'cutout'), 'gan.mode': 'hinge'},
    ],
    ids=['gan', 'generator alone', 'late gan with dropout', 'further d steps', 'plateau', 'labels'],
)
def test_n_and_n_steps_equal_2n_bit_for_bit(config, tmp_path, changes):
    config.update_from_flattened_dict(changes)
    if config.generator.name == 'dcgan':
        trees.classes(tmp_path / 'classes')
        config.data.dir = str(tmp_path / 'classes')
    train(config, tmp_path / 'whole')
    config.train.steps = 4
    train(config, tmp_path / 'parts')
    config.train.steps = 8
    train(config, tmp_path / 'parts')
    if config.generator.name == 'dcgan':
        config.data.classes = trees.CLASSES
    whole, parts = (restore(tmp_path / name, config, 8) for name in ('whole', 'parts'))
    if 'optim.plateau_metric' in changes:
        assert whole.generator.plateau.scale < 1 and whole.generator.plateau.looks > 1
    assert whole.batch == sum(1 for _ in build_job(config, 8).phases(0, 8))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    for name in ('whole', 'parts'):
        assert sorted({line['step'] for line in read_log(tmp_path / name) if 'g/loss' in line}) == [2, 4, 6, 8]


def test_patience_ends_a_training_and_more_of_it_goes_on(config, tmp_path, capsys):
    config.optim.lr = 0.0  # the first evaluation is the best
    config.update_from_flattened_dict({'gan.weight': 0.0, 'eval.every_steps': 2, 'train.steps': 20})
    config.train.patience = 2
    train(config, tmp_path / 'run')
    printed = capsys.readouterr().out
    assert 'train.patience=2: 2 evaluations in a row without a better PSNR than' in printed
    assert 'ended at step 6' in printed
    assert (tmp_path / 'run' / 'test.json').is_file()
    assert restore(tmp_path / 'run', config, 6).stalled == 2
    train(config, tmp_path / 'run')
    assert 'training on' not in capsys.readouterr().out
    config.train.patience = 3
    train(config, tmp_path / 'run')
    printed = capsys.readouterr().out
    assert 'resuming at step 6' in printed and 'ended at step 8' in printed


def test_resumes_from_between_evaluations_after_a_loss_of_the_last_checkpoint(config, tmp_path, capsys):
    train(config, tmp_path / 'run')
    before = restore(tmp_path / 'run', config, 8)
    shutil.rmtree(tmp_path / 'run' / FOLDER / '8')
    train(config, tmp_path / 'run')
    assert 'resuming at step 6' in capsys.readouterr().out
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(restore(tmp_path / 'run', config, 8)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [line['step'] for line in read_log(tmp_path / 'run') if 'loss/l1' in line] == [2, 4, 6, 8]
