import importlib
from pathlib import Path

import pytest

from configs import default
from p2p_jax.data import LAYOUTS
from p2p_jax.data.degrade import DEGRADATIONS
from p2p_jax.data.records import AUTO
from p2p_jax.job import build_job
from p2p_jax.losses import PIXEL_LOSSES
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.perceptual import PERCEPTUAL_LOSSES

FILES = sorted(path.stem for path in Path(default.__file__).parent.glob('*.py') if path.stem != '__init__')


@pytest.mark.parametrize('name', FILES)
def test_every_config_is_complete_locked_and_means_something(name):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config()
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.optm = 1
    job = build_job(config, 10)
    assert job.generator is not None
    assert config.data.layout in {AUTO, *LAYOUTS}
    if name != 'default':
        assert f'--config=configs/{name}.py' in module.__doc__
        assert len(Path(module.__file__).read_text().splitlines()) <= 40


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
