"""The command line as a user meets it, in processes of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from p2p_jax.data.images import header, write_image
from tests import trees
from tests.conftest import COMPILE_FAST, picture, write_pairs

ROOT = Path(__file__).parents[1]
SMALL = [
    '--config.data.crop_size=16',
    '--config.generator.unet.depth=2',
    '--config.generator.unet.width=8',
    '--config.generator.unet.dropout=0.0',
    '--config.discriminator.patchgan.strided=1',
    '--config.discriminator.patchgan.width=8',
    '--config.train.epochs=None',
    '--config.train.steps=2',
    '--config.train.batch_size=2',
]


def run(*arguments, cwd=ROOT, expect=0):
    """Runs the command line; returns what it printed. Errors must be errors, not tracebacks."""
    env = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': COMPILE_FAST}
    done = subprocess.run(
        [sys.executable, '-m', 'p2p_jax.main', *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    if expect == 2:
        assert done.stderr.startswith('error: '), done.stderr
        return done.stderr
    assert not done.stderr, 'libraries chatter on the screen'
    return done.stdout


@pytest.fixture(scope='module')
def session(tmp_path_factory):
    """A training on the user's own pairs without a split, by the command line."""
    root = tmp_path_factory.mktemp('session')
    write_pairs(root / 'pairs', 10)
    (root / 'configs').symlink_to(ROOT / 'configs')
    out = run('--config=configs/pairs.py', f'--config.data.dir={root / "pairs"}', *SMALL, cwd=root)
    assert (root / 'runs' / 'pairs' / 'test.json').is_file(), 'the workdir defaults to the name of the config'
    (root / 'runs' / 'pairs').rename(root / 'run')
    return root, out


def test_train_prints_the_table(session):
    root, out = session
    assert re.search(r'train 6 examples of 6 scenes; val 2 examples of 2 scenes \(\d, \d\); test 2 examples of 2', out)
    table = out[out.index('test: 2 examples') :].splitlines()
    scores = json.loads((root / 'run' / 'test.json').read_text())
    for line, side in zip(table[2:4], ('input', 'output'), strict=True):
        assert line.split() == [side, f'{scores[side]["psnr"]:.2f}', f'{scores[side]["ssim"]:.4f}']


def test_the_same_command_resumes(session):
    root, _ = session
    again = [a for a in SMALL if 'train.steps' not in a] + ['--config.train.steps=3']
    out = run(
        'train', '--config=configs/pairs.py', f'--config.data.dir={root / "pairs"}', f'--workdir={root / "run"}', *again
    )
    assert 'resuming at step 2' in out
    assert 'changed since the checkpoint: train.steps: 2 there, 3 given' in out
    assert 'step 3/3' in out


def test_a_stored_configuration_is_one_to_train_with(session, tmp_path):
    root, _ = session
    stored = root / 'run' / 'config.json'
    assert 'needs --workdir=DIR: a new one repeats that training' in run(f'--config={stored}', expect=2)
    assert "data.dir='/none': no such folder" in run(
        'audit', '--config', stored, '--config.data.dir=/none', '--config.data.tile_size=None', expect=2
    )
    assert "--config.optm.lr: no such key. Did you mean 'optim.lr'" in run(
        f'--config={stored}', '--config.optm.lr=1', expect=2
    )
    assert f'{stored} has no presets; leave out :x' in run(f'--config={stored}:x', expect=2)
    (tmp_path / 'other.json').write_text('{"a": 1}')
    assert 'no configuration; expected the config.json' in run(f'--config={tmp_path / "other.json"}', expect=2)


def test_evaluate_gives_the_scores_of_training(session):
    root, _ = session
    out = run('evaluate', f'--workdir={root / "run"}', '--model=identity', f'--output={root / "report.json"}')
    assert 'test: 2 examples, whole images' in out and 'identity - run' in out
    report = json.loads((root / 'report.json').read_text())
    assert report['count'] == 2 and list(report['models']) == ['run', 'identity']
    trained = json.loads((root / 'run' / 'test.json').read_text())
    for side, row in (('input', report['models']['identity']), ('output', report['models']['run'])):
        for metric, value in trained[side].items():
            assert row['means']['output'][metric]['mean'] == pytest.approx(value, abs=1e-3)


def test_predict_writes_whole_images_and_refuses_to_overwrite(session, tmp_path):
    root, _ = session
    for name, size in (('a.png', (33, 57)), ('deep/b.jpg', (16, 9))):
        trees.save(tmp_path / 'in' / name, picture(0, *size))
    arguments = ('predict', f'--workdir={root / "run"}', f'--input={tmp_path / "in"}', f'--output={tmp_path / "out"}')
    assert re.search(r'2/2 \| 0.0/0.0 megapixels, .*/s \| ETA 0s', run(*arguments))
    assert header('a', tmp_path / 'out' / 'a.png').size == (33, 57)
    assert header('b', tmp_path / 'out' / 'deep' / 'b.png').size == (16, 9)
    stamp = (tmp_path / 'out' / 'a.png').stat().st_mtime_ns
    assert '0 images; 2 done before' in run(*arguments)
    message = run(*arguments, '--ensemble', expect=2)
    assert 'a.png exists and is not overwritten without --overwrite' in message and 'b.png exists' in message
    assert (tmp_path / 'out' / 'a.png').stat().st_mtime_ns == stamp
    run('predict', f'--workdir={root / "run"}', f'--input={tmp_path / "in" / "a.png"}', f'--output={tmp_path / "one"}')
    assert {path.name for path in (tmp_path / 'one').iterdir()} == {'a.png', 'predict.jsonl'}


def test_predict_finds_bad_input_before_it_works(session, tmp_path):
    root, _ = session
    (tmp_path / 'in').mkdir()
    arguments = ('predict', f'--workdir={root / "run"}', f'--input={tmp_path / "in"}', f'--output={tmp_path / "out"}')
    assert 'no images there' in run(*arguments, expect=2)
    write_image(tmp_path / 'in' / 'a.png', picture(0))
    (tmp_path / 'in' / 'a.jpg').write_text('broken')
    assert 'would both be written to' in run(*arguments, expect=2)
    assert not (tmp_path / 'out').exists()
    (tmp_path / 'in' / 'a.jpg').rename(tmp_path / 'in' / 'b.jpg')
    assert 'b.jpg: not a readable image' in run(*arguments, expect=1)
    assert (tmp_path / 'out' / 'a.png').is_file()


def test_sidd_without_data_says_all_at_once(tmp_path):
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    message = run('--config=configs/sidd.py', cwd=tmp_path, expect=2)
    for part in (
        'data/SIDD_Medium_Srgb',
        'Where to get it',
        'GT}_SRGB',
        '--config=configs/sample.py',
    ):
        assert part in message
    assert [path.name for path in tmp_path.iterdir()] == ['configs']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config=configs/sampel.py'], "no such file. Available: .*Did you mean 'configs/sample.py'"),
        (
            ['--config=configs/sample.py', '--config.optm.lr=1'],
            "--config.optm.lr: no such key. Did you mean 'optim.lr'",
        ),
        (['--config=configs/sample.py', '--config.lr=1'], "--config.lr: no such key. Did you mean 'optim.lr'"),
        (['--config=configs/sample.py', '--config.optim.lr=fast'], 'could not convert string to float'),
        (
            ['--config=configs/sidd.py:nafet'],
            "configs/sidd.py:nafet: preset 'nafet' is unknown. Available: unet, nafnet",
        ),
        (['--config=configs/sample.py:fast'], 'configs/sample.py has no presets; leave out :fast'),
        (['--config.optim.lr=1'], 'needs --config=FILE'),
        (
            ['trian', '--config=configs/sample.py'],
            "verb='trian' is unknown. Available: audit, evaluate, export, generate, import_torch, predict, prepare, ",
        ),
        ([], 'train needs --config'),
        (['predict', '--workdir=x'], 'predict needs --input and --output'),
        (['evaluate', '--workdir=/none'], '/none: no checkpoints there'),
        (['evaluate', '--workdir=x', '--input=y'], '--input goes with --protocol'),
        (['evaluate', '--workdir=x', '--raw'], 'evaluate takes no --raw'),
        (
            ['predict', '--workdir=x', '--workdir=y', '--input=z', '--output=z'],
            '--workdir is given 2 times; only evaluate',
        ),
        (['audit', '--output=x'], 'audit needs --config'),
        (['audit', '--config=configs/sample.py', '--output=tests'], '--output=tests: that is a folder'),
        (['predict', '--input=x', '--output=y'], 'give either --workdir=DIR of a training or --model=FILE'),
        (['serve', '--port=8001'], 'give either --workdir=DIR of a training or --model=FILE'),
        (['evaluate'], 'give --workdir=DIR of a training, --model=FILE or --model=BASELINE'),
        (
            ['evaluate', '--model=identity,bm3'],
            "--model=bm3: no such file, and none of the baselines .*Did you mean 'bm3d'",
        ),
        (['evaluate', '--model=identity'], 'baselines know no data: give --config=FILE'),
        (['evaluate', '--model=tests'], '--model=tests: that is a folder; a training is --workdir=tests'),
        (['evaluate', '--model=identity', '--protocol=sid'], "--protocol='sid' is unknown. .*sidd-validation"),
        (['evaluate', '--model=identity', '--protocol=sidd-validation'], 'needs --input=DIR of the .mat files'),
        (['evaluate', '--model=identity', '--protocol=sidd-validation', '--input=tests'], 'no ValidationNoisyBlocks'),
        (['evaluate', '--model=identity', '--protocol=sidd-benchmark', '--input=tests'], 'needs --output=DIR'),
        (['evaluate', '--model=y', '--checkpoint=best'], '--checkpoint goes with --workdir'),
        (['evaluate', '--model=y'], '--model=y: no such file'),
        (['export', '--workdir=x'], 'export needs --output'),
        (['export', '--output=/none/x', '--format=onx'], "--format='onx' is unknown. .* Did you mean 'onnx'"),
        (['export', '--output=/none/x', '--size=256'], '--size=256: expected height and width'),
        (['export', '--output=/none/x', '--model=y', '--raw'], '--raw goes with --workdir'),
        (['prepare', '--config=configs/polyu.py'], 'prepare needs --output'),
        (['predict', '--workdir=x', '--input=x', '--output=y', '--tile=big'], 'flag --tile=big'),
        (['export', '--workdir=x', '--output=y', '--native'], 'export takes no --native'),
        (
            ['audit', '--config=configs/polyu.py', '--config.data.dir=/none'],
            "data.dir='/none': no such folder; / holds",
        ),
        (['train', 'now', '--config=configs/sample.py'], 'expected one verb'),
        (['--cofnig=x'], "Unknown command line flag 'cofnig'"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    assert re.search(message, run(*arguments, expect=2))


def test_a_model_file_predicts_what_the_training_does(session, tmp_path):
    root, _ = session
    trees.save(tmp_path / 'a.png', picture(0))
    flags = ('--size=16x24', f'--input={tmp_path / "a.png"}', f'--output={tmp_path / "m.safetensors"}')
    assert 'validation psnr' in run('export', f'--workdir={root / "run"}', *flags)
    assert 'm.safetensors exists and is not overwritten' in run('export', f'--workdir={root / "run"}', *flags, expect=2)
    for place in (f'--workdir={root / "run"}', f'--model={tmp_path / "m.safetensors"}'):
        out = tmp_path / place[2:4]
        run('predict', place, f'--input={tmp_path / "a.png"}', f'--output={out}')
    assert (tmp_path / 'wo' / 'a.png').read_bytes() == (tmp_path / 'mo' / 'a.png').read_bytes()


def test_audit_and_prepare(tmp_path):
    write_pairs(tmp_path / 'set', 6, height=64, width=64)
    flags = ['--config=configs/pairs.py', f'--config.data.dir={tmp_path / "set"}', '--config.data.crop_size=32']
    assert 'no problems in 6 examples' in run('audit', *flags, f'--output={tmp_path / "audit.json"}')
    assert 'train on it with' in run('prepare', *flags, f'--output={tmp_path / "out"}')
    assert 'prepared already' in run('prepare', *flags, f'--output={tmp_path / "out"}')
    (tmp_path / 'set' / 'input' / '0.png').write_bytes(b'')
    assert '0 bytes' in run('audit', *flags, f'--output={tmp_path / "audit.json"}', expect=1)
    assert len(json.loads((tmp_path / 'audit.json').read_text())['problems']) == 1
