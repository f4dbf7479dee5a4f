"""The configurations: complete, documented, and each of them trains."""

import importlib
import json
import re
from pathlib import Path

import pytest

from configs import awgn, default, sidd
from p2p_jax.data import LAYOUTS
from p2p_jax.data.degrade import DEGRADATIONS
from p2p_jax.data.records import AUTO
from p2p_jax.job import build_job
from p2p_jax.losses import PIXEL_LOSSES
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.perceptual import PERCEPTUAL_LOSSES
from p2p_jax.settings import check, takes_labels
from p2p_jax.train import train
from tests import trees

FILES = sorted(path.stem for path in Path(default.__file__).parent.glob('*.py') if path.stem != '__init__')


@pytest.mark.parametrize('name', FILES)
def test_every_config_is_complete_locked_and_means_something(name):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config()
    for preset in getattr(module, 'PRESETS', ()):
        assert f'`:{preset}`' in module.__doc__
        check(module.get_config(preset))
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.optm = 1
    if takes_labels(config):
        config.data.classes = config.data.classes or ('those', 'found')
    job = build_job(config, 10)
    assert job.generator is not None
    assert config.data.layout in {AUTO, *LAYOUTS}
    if name != 'default':
        assert f'--config=configs/{name}.py' in module.__doc__
        body = Path(module.__file__).read_text().removeprefix(f'"""{module.__doc__}"""')
        assert len(body.splitlines()) <= 50


@pytest.mark.parametrize('name', ['sample', 'polyu', 'sidd'])
def test_the_main_job_trains_a_gan(name):
    job = build_job(importlib.import_module(f'configs.{name}').get_config(), 10)
    assert job.adversary is not None and job.adversary.weight > 0


def test_every_row_of_a_table_has_its_section():
    config = default.get_config()
    assert set(GENERATORS) == set(config.generator) - {'name'}
    assert set(DISCRIMINATORS) == set(config.discriminator) - {'name'}
    assert set(DEGRADATIONS) == set(config.degrade) - {'name'}
    assert set(PIXEL_LOSSES) | set(PERCEPTUAL_LOSSES) == set(config.loss)


def test_every_key_has_a_comment():
    lines = Path(default.__file__).read_text().splitlines()
    keys = [
        i
        for i, line in enumerate(lines)
        if line.startswith('    config.') and ' = ' in line and 'ConfigDict()' not in line
    ]
    bare = [lines[i].strip() for i in keys if '#' not in lines[i] and not lines[i - 1].strip().startswith('#')]
    assert keys and not bare


# Each configuration, and the made-up data set that it trains on.
TRAINED = {
    'awgn': trees.clean,
    'cifar10:dcgan': trees.classes,
    'cifar10:sngan': trees.classes,
    'deblur': trees.faces,
    'facades': trees.side_by_side,
    'inria:instance': trees.inria,
    'inria:l1': trees.inria,
    'labelled': trees.classes,
    'pairs': trees.split_pairs,
    'polyu': trees.polyu,
    'sample': None,
    'sidd:nafnet': trees.sidd,
    'sidd:seed': trees.sidd,
    'sidd:unet': trees.sidd,
}
# What has weights of its own to read is trained in test_perceptual.
ELSEWHERE = {'inria:vgg', 'inria:vgg_scores'}


def shrink(config):
    """Makes a configuration that trains in seconds of one that takes days: fewer pixels, channels, layers, steps."""
    # SNGAN has no smaller size.
    size = 32 if config.generator.name == 'sngan' else 16
    config.data.update(crop_size=size, resize=config.data.resize and size)
    config.data.classes = ()
    config.gan.update(pretrain_steps=min(config.gan.pretrain_steps, 1), d_steps=1)
    if config.data.tile_size:
        config.data.tile_size = 20
    if tuple(config.data.grid) != (1, 1):
        config.data.grid = (2, 2)
    for section in (config.generator, config.discriminator):
        for options in (section[name] for name in section if name != 'name'):
            options.update({key: value for key, value in {'width': 4, 'depth': 1}.items() if key in options})
    config.generator.unet.depth = 2  # the least with a norm
    config.generator.unet.dropout = 0.0  # belongs to levels that are not there
    config.generator.nafnet.update(encoder_blocks=(1,), middle_blocks=0, decoder_blocks=(1,))
    config.discriminator.patchgan.update(strided=1)
    config.train.update(batch_size=2, steps=2, epochs=None)
    config.log.every_steps = 1
    config.eval.update(every_steps=2, every_epochs=None, crop_size=16)


def test_every_preset_is_trained_somewhere():
    names = set()
    for file in set(FILES) - {'default'}:
        presets = getattr(importlib.import_module(f'configs.{file}'), 'PRESETS', None)
        names |= {f'{file}:{preset}' for preset in presets} if presets else {file}
    assert names == set(TRAINED) | ELSEWHERE


@pytest.mark.parametrize('name', TRAINED)
def test_every_config_trains(name, tmp_path, capsys):
    file, _, preset = name.partition(':')
    config = importlib.import_module(f'configs.{file}').get_config(*([preset] if preset else []))
    make = TRAINED[name]
    if make:
        make(tmp_path / 'data')
        config.data.dir = str(tmp_path / 'data')
    shrink(config)
    train(config, tmp_path / 'run')
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines if 'g/loss' in line] == [1, 2]
    if takes_labels(config):
        assert (tmp_path / 'run' / 'samples' / '0000002.png').is_file()
    else:
        assert json.loads((tmp_path / 'run' / 'test.json').read_text())['count'] >= 1
        printed = capsys.readouterr().out
        assert re.search(r'test: \d+ examples, ', printed)
        for side in config.eval.names:
            assert re.search(rf'^ *{side} +-?\d', printed, re.MULTILINE), side


def test_unknown_presets_are_told():
    with pytest.raises(ValueError, match="preset 'x' is unknown. Available: unet, nafnet, seed"):
        sidd.get_config('x')
    with pytest.raises(ValueError, match="preset 'x': expected a number above 0"):
        awgn.get_config('x')
    assert awgn.get_config('50').degrade.awgn.std == (50 / 255, 50 / 255)
