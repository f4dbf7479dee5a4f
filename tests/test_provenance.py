"""Where a training comes from; that it is noted, and that its configuration repeats it, is tested in test_train."""

import importlib
import json
import re
import subprocess

import pytest

from p2p_jax import configfile, provenance
from p2p_jax.lookup import UserError
from tests.conftest import small_config
from tests.test_configs import FILES


def test_a_damaged_note_is_named(tmp_path):
    provenance.append(tmp_path, {'step': 0})
    provenance.append(tmp_path, {'step': 5})
    assert provenance.read(tmp_path) == [{'step': 0}, {'step': 5}]
    for content in ('[{"step": 0}', '{}'):
        (tmp_path / provenance.FILE).write_text(content)
        with pytest.raises(UserError, match=r'provenance.json: damaged.*remove it'):
            provenance.append(tmp_path, {})


def test_the_commit_is_that_of_the_code_and_not_of_what_lies_around_it(tmp_path):
    def git(*command):
        identity = ('-c', 'user.name=a', '-c', 'user.email=a@b')
        subprocess.run(['git', '-C', tmp_path, *identity, *command], check=True, capture_output=True)

    folder = tmp_path / 'package'
    folder.mkdir()
    (folder / '__init__.py').write_text('')
    assert provenance.git_commit(folder) is None
    git('init')
    assert provenance.git_commit(folder) is None
    git('add', '.')
    git('commit', '-m', 'first')
    found = provenance.git_commit(folder)
    assert len(found['commit']) == 40 and found['dirty'] is False
    (folder / '__init__.py').write_text('changed')
    assert provenance.git_commit(folder) == found | {'dirty': True}


@pytest.mark.parametrize('name', FILES)
def test_every_configuration_survives_its_file(name, tmp_path):
    module = importlib.import_module(f'configs.{name}')
    for preset in getattr(module, 'PRESETS', None) or [None]:
        config = module.get_config(*([preset] if preset else []))
        (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
        read = configfile.get_config(str(tmp_path / 'config.json'))
        assert read.to_dict() == config.to_dict() and read.is_locked
        read.optim.discriminator.lr = 1.0  # still of its kind, though it is None in the file


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda text: None, r'cannot be read \(No such file'),
        (lambda text: text[:-40], 'damaged, or no JSON'),
        (lambda text: b'\xff\xfe\x00'.decode('latin1'), 'damaged, or no JSON'),
        (lambda text: '[' * 100_000, 'damaged, or no JSON'),
        (lambda text: '[1]', 'no configuration; expected the config.json in the workdir'),
        (lambda text: '{"scale": 1.0, "splits": {}}', 'no configuration; expected'),
        (lambda text: text.replace('"lr"', '"rate"'), r'2 unknown keys; it was written by another .*optim.rate'),
        (lambda text: text.replace('"seed"', '"gan.x"', 1), r'1 unknown keys'),
        (lambda text: text.replace('"seed": 0, ', '', 1), r'1 missing keys; .*seed'),
        (
            lambda text: text.replace('"seed": 0,', '"seed": "a",', 1),
            r"1 values of another .*seed='a': expected .*0",
        ),
    ],
)
def test_other_files_are_told_apart(change, message, tmp_path):
    text = change(json.dumps(small_config().to_dict()))
    path = tmp_path / 'config.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=re.compile(f'--config={path}: {message}', re.S)):
        configfile.get_config(str(path))
