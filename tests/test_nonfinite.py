"""Numbers that go wrong: what is skipped, what is gone back on, what is kept, and that it can be done again."""

import json
import math
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax import diagnosis
from p2p_jax.data.pipeline import TrainData
from p2p_jax.faults import COLLAPSED, SKIPPED, CollapseWatch, FaultOptions
from p2p_jax.lookup import UserError
from p2p_jax.loop import Progress, Run, Standing
from p2p_jax.losses import PIXEL_LOSSES
from p2p_jax.settings import check
from p2p_jax.train import train
from tests.conftest import small_config, write_pairs
from tests.test_steps import SMALL, batches, equal, make, run
from tests.test_train import read_log, restore

SURE = {'loss/d_real': 1e-4, 'loss/d_generated': 1e-5, 'd/real': 9.0, 'd/generated': -9.0}
FINE = {'loss/d_real': 0.6, 'loss/d_generated': 0.7, 'd/real': 0.2, 'd/generated': -0.1}
BLIND = {'loss/d_real': 0.6, 'loss/d_generated': 0.7, 'd/real': 0.2001, 'd/generated': 0.2}


def poison(value_range):
    """L1 that is NaN where a target is white all over."""
    plain = L1(value_range)

    def loss(output, target):
        return jnp.where(jnp.all(target > value_range[1] - 1e-3), jnp.nan, 1.0) * plain(output, target)

    return loss


L1 = PIXEL_LOSSES['l1']


@pytest.fixture(autouse=True, scope='module')
def poisoned():
    """Makes batches with the numbers in the set that it gives end in NaN."""
    numbers = set()
    honest = TrainData.batch

    def batch(self, number):
        made = honest(self, number)
        return made | {'target': np.full_like(made['target'], 255)} if number in numbers else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainData, 'batch', batch)
        patch.setitem(PIXEL_LOSSES, 'l1', poison)
        yield numbers


def quick(root):
    """A generator alone of few layers, for a quick compilation."""
    for seed, split in ((0, 'train'), (100, 'val'), (200, 'test')):
        write_pairs(root / split, 6, seed)
    config = small_config(root)
    config.gan.weight = 0.0
    config.train.steps = 6
    config.eval.update(every_steps=6, crop_size=16, batch_size=6)
    return config


@pytest.fixture(scope='module')
def stopped(tmp_path_factory, poisoned):
    """A training that went back twice and stopped at the third time: its workdir, configuration and message."""
    root = tmp_path_factory.mktemp('stopped')
    config = quick(root / 'pairs')
    config.fault.update(on_nonfinite='rollback', rollback_limit=2, rollback_lr_factor=0.25)
    poisoned.update({0, 5, 6})
    with pytest.raises(UserError) as error:
        train(config, root / 'run')
    poisoned.clear()
    return root / 'run', config, str(error.value)


def white(batch):
    return batch | {'target': np.full_like(batch['target'], 255)}


def test_a_skipped_update_leaves_everything_that_is_trained():
    job = make(
        fault__on_nonfinite='skip',
        fault__skip_limit=2,
        ema__decay=0.9,
        generator__unet__norm='batch',
        discriminator__patchgan__norm='spectral',
        **SMALL,
    )
    data = list(batches(2))
    before, history = run(job, 2, data[:1])
    assert history[0][SKIPPED] == 0

    def same(a, b):
        return all(equal(getattr(a, part), getattr(b, part)) for part in ('generator', 'discriminator', 'ema'))

    skipped, history = run(job, 2, [white(data[0])], state=before)
    assert history[0][SKIPPED] == 1 and math.isnan(history[0]['loss/l1'])
    assert same(skipped, before)
    assert (skipped.step, skipped.batch, skipped.fault.skipped, skipped.fault.row) == (2, 2, 1, 1)
    assert skipped.fault.step == -1
    later, _ = run(job, 2, data[1:], state=skipped)
    assert not same(later, skipped)
    assert (later.fault.skipped, later.fault.row, later.fault.step) == (1, 0, -1)

    stopped, _ = run(job, 2, [white(data[0]), white(data[1])], state=later)
    assert same(stopped, later)
    assert (stopped.fault.skipped, stopped.fault.row, stopped.fault.step, stopped.fault.batch) == (3, 2, 5, 4)
    assert job.terms[stopped.fault.term] == 'loss/l1'
    frozen, _ = run(job, 2, data[:1], state=stopped)
    assert same(frozen, later) and frozen.fault.step == 5


def test_skipping_goes_on_and_says_so(poisoned, tmp_path, capsys):
    config = quick(tmp_path / 'pairs')
    config.fault.on_nonfinite = 'skip'
    poisoned.add(2)
    train(config, tmp_path / 'run')
    poisoned.clear()
    assert capsys.readouterr().out.count('1 of 2 updates skipped') == 1
    log = {line['step']: line for line in read_log(tmp_path / 'run') if 'loss/l1' in line}
    assert [log[step][SKIPPED] for step in (2, 4, 6)] == [0, 0.5, 0]
    assert all(math.isfinite(line['loss/l1']) for line in log.values())
    assert restore(tmp_path / 'run', config, 6).fault.skipped == 1


def test_stops_with_a_diagnosis(stopped):
    workdir, config, message = stopped
    folder = workdir / 'nonfinite_0000005'
    assert message.startswith(
        'step 5: loss/l1 became NaN or infinite first, after going back 2 times; the last good checkpoint is that of '
        f'step 4 in {workdir}'
    )
    assert 'the first value that is not finite: loss/l1\n  grad_norm/generator/down_0: nan' in message
    assert f'replay --input={folder}' in message
    facts = json.loads((folder / diagnosis.FACTS).read_text())
    assert (facts['step'], facts['batch'], facts['seed'], facts['term']) == (5, 6, 0, 'loss/l1')
    assert (facts['checkpoint'], facts['phase'], len(facts['records'])) == (4, 'generator', 4)
    assert set(facts['records']) <= {f'train/{i}' for i in range(6)}
    with np.load(folder / 'batch_0.npz') as batch:
        assert (batch['target'] == 255).all() and not (batch['condition'] == 255).all()
    at_checkpoint, before = restore(workdir, config, 4), restore(folder, config, 5)
    assert (before.step, before.batch, before.fault.step, before.fault.rollbacks) == (4, 6, -1, 2)
    assert equal(at_checkpoint.generator, before.generator)


def test_a_replay_gives_the_numbers_of_the_diagnosis(stopped, tmp_path, capsys):
    folder = tmp_path / 'kept'
    shutil.copytree(stopped[0] / 'nonfinite_0000005', folder)
    numbers = diagnosis.replay(folder)
    facts = json.loads((folder / diagnosis.FACTS).read_text())
    assert {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()} == facts['numbers']
    out = capsys.readouterr().out
    assert 'step 5: first not finite: loss/l1' in out
    names = list(numbers)
    places = [names.index(name) for name in ('target', 'generator/down_0', 'generator/up_0', 'loss/l1')]
    assert places == sorted(places) and names[-1] == 'grad_norm/generator'
    assert math.isnan(numbers['grad_norm/generator/up_1']) and numbers['condition'] == pytest.approx(1, abs=0.2)
    (folder / 'batch_0.npz').write_bytes(b'no archive')
    with pytest.raises(UserError, match='damaged'):
        diagnosis.replay(folder)


def test_goes_back_to_other_batches_and_a_lower_rate_also_when_killed_meanwhile(stopped, poisoned, capsys):
    """The training that stopped goes on from its checkpoint, in which nothing of the second time is said."""
    workdir, config, _ = stopped
    config.fault.rollback_limit = 3
    poisoned.update({0, 5, 6})
    train(config, workdir)
    assert capsys.readouterr().out.count('going back') == 2
    train(config, workdir.parent / 'whole')
    poisoned.clear()
    assert capsys.readouterr().out.count('going back') == 3
    state = restore(workdir.parent / 'whole', config, 6)
    assert equal(state, restore(workdir, config, 6))
    assert (state.step, state.batch, state.fault.rollbacks, state.fault.step) == (6, 9, 3, -1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    for place in (workdir, workdir.parent / 'whole'):
        rates = [(line['step'], line['lr/generator']) for line in read_log(place) if 'loss/l1' in line]
        assert rates == [(step, pytest.approx(2e-4 * 0.25**times)) for step, times in ((2, 1), (4, 1), (6, 3))]


def options(**changes):
    return FaultOptions(**(small_config().fault.to_dict() | {'collapse_steps': 3} | changes))


@pytest.mark.parametrize(('values', 'kind', 'word'), [(SURE, 'won', 'losses are 0'), (BLIND, 'blind', 'alike')])
def test_a_collapse_is_told_once_each_time(values, kind, word):
    watch = CollapseWatch(options(), {})
    assert watch.see([values, values, FINE, values, values, {'g/loss': 1.0}]) == [] and not watch.collapsed
    (line,) = watch.see([values])
    assert 'collapsed for 3 updates' in line and word in line
    assert watch.collapsed == kind
    assert watch.see([values] * 9) == []
    assert watch.see([FINE]) == [] and not watch.collapsed
    assert len(watch.see([values] * 5)) == 1


def test_the_log_tells_of_a_collapse_and_leaves_out_what_was_skipped(capsys):
    written = {}
    writer = types.SimpleNamespace(write_scalars=lambda step, values: written.update({step: values}))
    standing = Standing()
    run = types.SimpleNamespace(writer=writer, raise_on_fault=lambda state: None)
    progress = Progress(first=0, total=9, batch_size=1, marked=(0, 1.0))

    def log(step, recent):
        standing.recent = recent
        # What a checkpoint stores between two logs is all there is to know.
        restored = Standing.of(json.loads(json.dumps(standing.to_json())))
        run.unsaid, run.watch = (step, restored.recent), CollapseWatch(options(), restored.collapsed)
        Run.log(run, progress, None)
        standing.collapsed = restored.collapsed

    log(2, [FINE | {SKIPPED: 0.0}, SURE | {SKIPPED: 0.0}])
    bad = dict.fromkeys(SURE, math.nan) | {SKIPPED: 1.0}
    log(4, [bad, SURE | {SKIPPED: 0.0}])
    log(7, [SURE | {SKIPPED: 0.0}] * 3)
    log(9, [bad, bad])
    assert [written[step][COLLAPSED] for step in (2, 4, 7, 9)] == [0, 0, 1, 0]
    assert [written[step][SKIPPED] for step in (2, 4, 7, 9)] == [0, 0.5, 0, 1]
    assert written[4]['loss/d_real'] == pytest.approx(SURE['loss/d_real']) and math.isnan(written[9]['loss/d_real'])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if 'warning' in line] == [
        f'step 7: warning: {CollapseWatch(options(), {}).see([SURE] * 3)[0]}'
    ]
    assert lines[1].endswith('| 1 of 2 updates skipped') and lines[-1].endswith('| 2 of 2 updates skipped')
    assert lines[3].endswith('| D collapsed (won)')


def test_nothing_is_watched_where_no_number_says_so():
    watch = CollapseWatch(options(collapse_steps=None), {})
    assert watch.see([SURE] * 1000) == [] and not watch.collapsed


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'on_nonfinite': 'ignore'}, 'fault.on_nonfinite=ignore: expected raise, skip, rollback'),
        ({'skip_limit': 0}, 'fault.skip_limit=0: expected at least 1'),
        ({'rollback_limit': 0}, 'fault.rollback_limit=0: expected at least 1'),
        ({'rollback_lr_factor': 0.0}, r'fault.rollback_lr_factor=0.0: expected in \(0, 1\]'),
        ({'collapse_steps': 0}, 'fault.collapse_steps=0: expected at least 1, or None'),
    ],
)
def test_bad_options_are_named(changes, message):
    config = small_config()
    config.fault.update(changes)
    with pytest.raises(UserError, match=message):
        check(config)


def test_replay_wants_what_a_training_left(tmp_path):
    with pytest.raises(UserError, match=r'no diagnosis.json there; expected a folder nonfinite_'):
        diagnosis.replay(tmp_path)
    (tmp_path / diagnosis.FACTS).write_text('{"step": 3')
    with pytest.raises(UserError, match='damaged'):
        diagnosis.replay(tmp_path)
    (tmp_path / diagnosis.FACTS).write_text('{"step": 3}')
    with pytest.raises(UserError, match='damaged, without devices, phase, steps, term'):
        diagnosis.replay(tmp_path)
