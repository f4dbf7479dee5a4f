"""Training from end to end on made-up pairs; the command line is in test_main."""

import json
import sys

import jax
import numpy as np
import pytest

from configs import polyu
from p2p_jax import configfile, datasets, inference, provenance
from p2p_jax.checkpoint import FOLDER, Checkpoints
from p2p_jax.data.images import decode, header, read_image, write_image
from p2p_jax.datasets import find_splits
from p2p_jax.evaluate import build_evaluator, evaluate_model
from p2p_jax.job import build_job, training_size
from p2p_jax.lookup import UserError
from p2p_jax.loop import Progress, length_in_steps
from p2p_jax.predict import predict
from p2p_jax.predictor import PredictOptions
from p2p_jax.settings import check
from p2p_jax.train import check_resume, train
from tests.conftest import picture, small_config, write_pairs


def restore(workdir, config, step):
    checkpoints = Checkpoints(workdir, read_only=True)
    job = build_job(config, 10)
    shapes = jax.eval_shape(lambda: job.create_state(config.seed, training_size(config)))
    state = checkpoints.restore(step, shapes)
    checkpoints.close()
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def read_log(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A training of eight steps: its workdir and configuration."""
    root = tmp_path_factory.mktemp('trained')
    for seed, split in ((0, 'train'), (100, 'val'), (200, 'test')):
        write_pairs(root / 'pairs' / split, 6, seed)
    config = small_config(root / 'pairs')
    config.ema.decay = 0.9
    train(config, root / 'run')
    return root / 'run', config


def test_leaves_what_the_readme_promises(trained):
    workdir, _ = trained
    content = json.loads((workdir / 'test.json').read_text())
    assert set(content) == {'input', 'output', 'count'}
    assert content['count'] == 6
    for side in ('input', 'output'):
        assert set(content[side]) == {'psnr', 'ssim'}
    assert {path.name for path in (workdir / 'samples').iterdir()} == {'0000004.png', '0000008.png', 'test.png'}
    assert read_image(workdir / 'samples' / 'test.png').shape[1] == 3 * 40 + 2 * 4
    assert json.loads((workdir / 'config.json').read_text())['train']['steps'] == 8
    assert list(workdir.glob('events.out.tfevents.*'))
    assert 'loss/l1' in (workdir / 'train.log').read_text()


def test_the_start_is_noted(trained):
    workdir, config = trained
    (start,) = provenance.read(workdir)
    assert start['config'] == json.loads((workdir / 'config.json').read_text())
    assert start['command'] == sys.orig_argv
    assert (start['step'], start['seed'], len(start['devices'])) == (0, config.seed, 2) and start['host']
    packages = {'python', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'p2p_jax'}
    assert packages < start['versions'].keys() and start['versions']['jax'] == jax.__version__


def test_the_stored_configuration_repeats_the_training_bit_for_bit(trained, tmp_path):
    workdir, _ = trained
    config = configfile.get_config(str(workdir / 'config.json'))
    train(config, tmp_path / 'again')
    runs = [restore(place, config, 8) for place in (workdir, tmp_path / 'again')]
    for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_training_is_not_trained_again(trained, capsys):
    workdir, config = trained
    log = (workdir / 'metrics.jsonl').read_text()
    train(config, workdir)
    out = capsys.readouterr().out
    assert 'resuming at step 8' in out and 'test: 6 examples' in out and 'step 8/8' not in out
    assert (workdir / 'metrics.jsonl').read_text() == log


def test_logs_all_that_was_promised(trained):
    lines = read_log(trained[0])
    training = [line for line in lines if 'loss/l1' in line]
    assert [line['step'] for line in training] == [2, 4, 6, 8]
    names = {'loss/l1', 'loss/gan', 'loss/d_real', 'loss/d_generated', 'd/real', 'd/generated', 'images_per_second'}
    names |= {f'{kind}/{network}' for kind in ('grad_norm', 'lr') for network in ('generator', 'discriminator')}
    names |= {'g/loss', 'd/loss', 'd/collapsed', 'data_wait'}
    assert names | {'step', 'time'} == set(training[0])
    assert all(0 <= line['data_wait'] < 1 for line in training)
    validation = [line for line in lines if 'val/psnr' in line]
    assert [line['step'] for line in validation] == [4, 8]
    assert {'val/psnr', 'val/ssim', 'val/input_psnr', 'val/input_ssim'} < set(validation[0])


def test_test_json_is_the_evaluation_of_the_best_checkpoint(trained, tmp_path):
    workdir, _ = trained
    scores = evaluate_model(inference.load(workdir, 'best'), tmp_path / 'again.json').scores
    assert (
        json.loads((workdir / 'test.json').read_text()) == scores == json.loads((tmp_path / 'again.json').read_text())
    )


def test_evaluates_the_averages_and_degrades_nothing_at_rest(trained):
    workdir, config = trained
    state = restore(workdir, config, 8)
    model = inference.load(workdir, '8')
    for a, b in zip(jax.tree.leaves(model.variables), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_do_not_depend_on_the_batch_size(pairs):
    config = small_config(pairs)
    config.degrade.name = 'poisson_gaussian'
    job = build_job(config, 1)
    records = find_splits(config, ['test'])['test']
    variables = jax.jit(lambda: job.create_state(0, (16, 16, 3)))().evaluated
    outcomes = []
    for batch_size in (1, 2, 3, 8):  # made a multiple of the two devices
        config.eval.batch_size = batch_size
        outcomes.append(build_evaluator(job, config, records)(variables).scores)
    for scores in outcomes:
        assert scores['count'] == 4
        for side in ('input', 'output'):
            assert scores[side] == pytest.approx(outcomes[0][side], abs=1e-4)


def test_scores_are_means_over_examples_of_what_predict_would_give(trained):
    """The validation PSNR, computed anew in numpy from single whole images."""
    workdir, config = trained
    model = inference.load(workdir, 'latest')
    values = []
    for record in find_splits(config, ['val'])['val']:
        condition, target = (source.read() / np.float32(255) for source in record.sources)
        output = np.asarray(model.job.apply(model.variables, condition[None]))[0]
        values.append(-10 * np.log10(np.mean((np.float64(output) - target) ** 2)))
    assert [line for line in read_log(workdir) if 'val/psnr' in line][-1]['val/psnr'] == pytest.approx(
        np.mean(values), abs=1e-3
    )


@pytest.mark.parametrize(
    ('key', 'value'),
    [('generator.unet.width', 16), ('discriminator.patchgan.strided', 2), ('ema.decay', 0.0), ('gan.weight', 0.0)],
)
def test_a_workdir_of_another_architecture_is_refused_and_untouched(trained, key, value):
    workdir, config = trained
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.is_file()}
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf'(?s)contradicts the given one \(nothing was touched\):.*{key}: .* there, '):
        train(other, workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.is_file()} == before


def test_harmless_changes_are_told(tmp_path):
    config = small_config(tmp_path)
    stored = json.loads(json.dumps(config.to_dict()))
    assert check_resume(stored, config.to_dict(), tmp_path) == []
    config.optim.lr = 1.0
    assert check_resume(stored, config.to_dict(), tmp_path) == ['optim.lr: 0.0002 there, 1.0 given']


def test_a_non_finite_loss_stops_at_the_next_log_and_nothing_of_it_is_saved(config, tmp_path):
    config.discriminator.patchgan.update(strided=0, unstrided=2)  # 1×1 convolutions, which compile fast
    config.train.steps = 6
    train(config, tmp_path / 'run')
    config.train.steps = 20
    config.optim.lr = 1e38
    with pytest.raises(
        UserError, match=r'step \d+: .*/.* became NaN or infinite first; the last good .* step \d'
    ) as error:
        train(config, tmp_path / 'run')
    (folder,) = (tmp_path / 'run').glob('nonfinite_*')
    assert str(error.value).endswith(f'replay --input={folder}')
    numbers = json.loads((folder / 'diagnosis.json').read_text())['numbers']
    groups = {'parameters of generator/up_0', 'generator/up_0', 'discriminator of real/head'}
    groups |= {
        'discriminator of generated/head',
        'loss/gan',
        'grad_norm/discriminator/head',
        'grad_norm/generator/up_0',
    }
    assert groups < numbers.keys()
    for step in (int(path.name) for path in (tmp_path / 'run' / FOLDER).iterdir()):
        state = restore(tmp_path / 'run', config, step)
        assert state.fault.step == -1
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    steps = [line['step'] for line in read_log(tmp_path / 'run')]
    assert max(steps) <= 10  # two log intervals after the change at the most


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train.batch_size': 3}, 'train.batch_size=3 does not divide by the 2 devices. Take 4'),
        (
            {'train.accumulate': 3},
            'train.batch_size=4 does not divide by the 2 devices times train.accumulate=3. Take 6',
        ),
        (
            {'gan.d_steps': 0, 'train.patience': 0},
            r'(?s)gan.d_steps=0: .*train.patience=0: expected at least 1, or None',
        ),
        ({'optim.schedule': 'plateau'}, 'optim.final_lr=0.0: optim.schedule=plateau needs a lowest rate above 0'),
        ({'generator.name': 'unt'}, "generator.name='unt' is unknown. Available: .*Did you mean 'unet'"),
        (
            {'discriminator.name': 'x'},
            "discriminator.name='x' is unknown. Available: dcgan, multiscale, patchgan, sngan",
        ),
        ({'generator.unet.norm': 'layer'}, "generator.unet.norm='layer' is unknown. Available: batch, group, instance"),
        ({'gan.mode': 'wgan'}, "gan.mode='wgan' is unknown. Available: hinge, lsgan, vanilla, wgan_gp."),
        ({'degrade.name': 'lensblur'}, "degrade.name='lensblur' is unknown. Available: .*Did you mean 'lens_blur'"),
        ({'degrade.name': 'awgn+none'}, "degrade.name='awgn.none': none stands alone"),
        ({'degrade.name': 'awgn+jpg'}, "degrade.name='jpg' is unknown. Available: .*poisson_gaussian"),
        ({'data.layout': 'polu'}, "data.layout='polu' is unknown. Available: .*Did you mean 'polyu'"),
        (
            {'optim.schedule': 'linear'},
            "optim.schedule='linear' is unknown. Available: constant, cosine, exponential, lin",
        ),
        ({'optim.discriminator.name': 'sgd'}, "optim.discriminator.name='sgd' is unknown. Available: adam, adamw"),
        ({'gan.mode': 'hinge', 'gan.label_smoothing': 0.1}, "gan.mode='hinge' has no labels to smooth; expected 0"),
        ({'loss.ms_ssim.weight': 1.0}, 'expected data.crop_size of at least 176, not 16'),
        ({'optim.warmup_steps': 8}, 'optim.warmup_steps=8: expected less than train.steps=8'),
        ({'optim.boundaries': (0.5, 4)}, r'optim.boundaries=\(0.5, 4\): expected rising numbers, either all shares'),
        ({'optim.final_lr': 1e-6}, 'optim.final_lr=1e-06: of use to cosine, linear_decay, plateau only'),
        ({'dtype': 'float16'}, "dtype='float16' is unknown. Available: bfloat16, float32"),
        ({'discriminator.patchgan.last_activation': 'sigmoid'}, 'works on logits'),
        ({'data.crop_size': 41}, r'0.png is 48×40, too small for data.crop_size=41'),
        ({'data.tile_size': 32, 'data.tile_overlap': 32}, 'data.tile_overlap=32: expected less than data.tile_size=32'),
        ({'data.tile_size': 32, 'data.grid': (2, 2)}, r'data.grid=\(2, 2\) and data.tile_size=32: give one of them'),
        ({'data.resize': 15}, 'data.crop_size=16: expected at most data.resize=15'),
        ({'data.split': (0.7, 0.3)}, r'data.split=\(0.7, 0.3\): expected three positive shares'),
        ({'degrade.name': 'awgn+camera', 'data.channels': 1}, 'a camera has three channels; set data.channels=3'),
        ({'data.direction': 'AB'}, 'data.direction=AB: expected AtoB or BtoA'),
        ({'norm.statistics': 'mean'}, 'norm.statistics=mean: expected running or batch'),
        ({'discriminator.patchgan.strided': 5}, 'leave nothing of a 16×16 image'),
        (
            {'optim.lr': -1.0, 'ema.decay': 1.0},
            r'(?s)2 bad values:.*optim.lr=-1.0: .*ema.decay=1.0: expected in \[0, 1',
        ),
        ({'gan.weight': 0.0, 'loss.l1.weight': 0.0}, 'nothing is left to train on'),
        ({'degrade.poisson_gaussian.read': (0.02, 0.01)}, 'expected two numbers of at least 1e-09, the lower first'),
        ({'eval.names': ('noisy',)}, 'expected two names'),
        ({'degrade.awgn.std': (None, 1.0)}, r'degrade.awgn.std=\(None, 1.0\): expected two numbers of at least 0'),
        ({'data.crop_size': None, 'data.resize': 64}, 'data.crop_size=None: expected a value'),
        ({'discriminator.patchgan.width': 0}, 'discriminator.patchgan.width=0: expected at least 1'),
        ({'data.dir': '/none'}, "data.dir='/none': no such folder"),
        ({'train.steps': 0}, 'train.steps=0 and train.epochs=None: expected at least 1'),
        ({'optim.lr': None}, 'optim.lr=None: expected a value'),
        ({'discriminator.name': 'sngan'}, 'discriminator.name=sngan: it judges by labels, but unet takes images'),
        (
            {'generator.name': 'dcgan', 'train.patience': 3},
            r'(?s)discriminator.name=patchgan: generator.name=dcgan makes images from labels; expected one of dcgan, '
            r'sngan.*loss.l1.weight=100.0: .*have no target; expected 0.*train.patience=3: ',
        ),
        ({'gan.augment': ('colour',)}, "gan.augment='colour' is unknown. Available: color, cutout, translation"),
    ],
)
def test_bad_input_is_one_error_before_anything_is_made(config, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_truncated_file_is_named_before_training_starts(config, pairs, tmp_path):
    for path in (pairs / 'train' / 'target').iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r'target/\d.png: truncated'):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_file_that_breaks_during_training_is_named(config, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'check_stored_splits', lambda *_: (pairs / 'train/input/0.png').write_bytes(b'x'))
    config.data.cache_mb = 0
    with pytest.raises(UserError, match=r'input/0.png: not a readable image'):
        train(config, tmp_path / 'run')


def test_a_resumed_training_s_data_may_not_change(config, pairs, tmp_path):
    config.train.steps = 4
    train(config, tmp_path / 'run')
    stored = json.loads((tmp_path / 'run' / 'data.json').read_text())
    assert stored['splits']['val'] == [f'val/{name}' for name in (0, 1, 2, 'other')]
    for side in ('input', 'target'):
        (pairs / 'train' / side / '0.png').unlink()
    config.train.steps = 8
    with pytest.raises(UserError, match=r'(?s)other data than is there now .*train/0 is gone'):
        train(config, tmp_path / 'run')


def test_grey_photographs_train_and_predict_in_grey_and_in_depth(tmp_path):
    """A network of one channel: from files to results."""
    for i in range(6):
        write_image(tmp_path / 'set' / f'{i}.png', picture(i)[..., :1].astype(np.uint16) * 257)
    config = small_config(tmp_path / 'set')
    config.update_from_flattened_dict({'data.channels': 1, 'degrade.name': 'awgn+jpeg', 'train.steps': 2})
    config.data.update(cut_blur=0.5, mixup=0.5, jitter=0.1)
    train(config, tmp_path / 'run')
    assert read_image(tmp_path / 'run' / 'samples' / 'test.png').shape[-1] == 3
    write_image(tmp_path / 'in' / 'grey.png', picture(9)[..., :2].astype(np.uint16) * 257)
    write_image(tmp_path / 'in' / 'colour.tif', picture(9))
    model = inference.load(tmp_path / 'run', 'best')
    assert predict(model, tmp_path / 'in', tmp_path / 'out', PredictOptions()) == 0
    found = {path.stem: header(str(path), path) for path in (tmp_path / 'out').glob('*.png')}
    assert (found['grey'].channels, found['grey'].bits) == (2, 16)
    assert (found['colour'].channels, found['colour'].bits) == (3, 8)
    alpha = decode('grey', tmp_path / 'out' / 'grey.png')[..., 1]
    np.testing.assert_array_equal(alpha, picture(9)[..., 1].astype(np.uint16) * 257)


def test_a_file_in_place_of_the_workdir_is_left_alone(config, tmp_path):
    (tmp_path / 'run').write_text('mine')
    with pytest.raises(UserError, match='that is a file; expected a folder'):
        train(config, tmp_path / 'run')
    assert (tmp_path / 'run').read_text() == 'mine'


def test_lengths_in_steps_or_epochs():
    config = small_config()
    assert length_in_steps(config, 'train.', 7) == 8
    assert length_in_steps(config, 'log.every_', 7) == 2
    config.train.update(steps=None, epochs=3)
    assert length_in_steps(config, 'train.', 7) == 21
    config.train.steps = 5
    with pytest.raises(UserError, match='train.steps=5 and train.epochs=3: give one of them'):
        length_in_steps(config, 'train.', 7)


def test_defaults_pass_their_own_checks():
    check(small_config())


def test_a_configuration_of_another_version_is_one_error():
    with small_config().unlocked() as config:
        del config.gan.d_steps
        del config.train.patience
    with pytest.raises(
        UserError, match=r'(?s)lacks 2 keys; it was written by another version.*gan.d_steps\n.*patience'
    ):
        check(config)


@pytest.mark.parametrize('key', ['eval.dropout', 'eval.lpips', 'gan.augment', 'norm.statistics', 'dtype'])
def test_each_key_of_the_jobs_that_is_not_there_is_named(key):
    with small_config().unlocked() as config:
        section, _, name = key.rpartition('.')
        del (config[section] if section else config)[name]
    with pytest.raises(UserError, match=f'lacks 1 keys; it was written by another version of p2p_jax:\n  {key}'):
        check(config)


def test_progress_line():
    progress = Progress(first=0, total=200, batch_size=4, last_score='val 30.12 dB')
    progress.started -= 60
    line = progress.line(50, {'images_per_second': 12.34, 'loss/l1': 0.1234567, 'lr/generator': 1.0})
    assert line == 'step 50/200 (25%) | ETA 3m00s | 12.3 images/s | l1 0.1235 | val 30.12 dB'


def test_real_photographs(real_data, tmp_path):
    """A few steps of the PolyU configuration on the photographs themselves, straight from the files."""
    config = polyu.get_config()
    config.data.dir = str(real_data / 'polyu')
    config.generator.unet.update(width=8, depth=2, init_std=0.005)
    config.discriminator.patchgan.width = 8
    config.train.steps = 3
    train(config, tmp_path / 'run')
    content = json.loads((tmp_path / 'run' / 'test.json').read_text())
    assert content['count'] >= 5
    assert 30 < content['input']['psnr'] < 45
    # The network starts near zero, and its residual output near the input.
    assert content['output']['psnr'] == pytest.approx(content['input']['psnr'], abs=1)
    picture = tmp_path / 'run' / 'samples' / 'test.png'
    assert header(str(picture), picture).width == 3 * 512 + 8
