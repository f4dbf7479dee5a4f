"""The loop of a training: steps, and at their intervals the log, scores, pictures and checkpoints."""

import collections
import concurrent.futures
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np

from p2p_jax import report
from p2p_jax.checkpoint import Checkpoints
from p2p_jax.data import images
from p2p_jax.data.pipeline import Batch, TrainData, split_over_devices
from p2p_jax.evaluate import describe
from p2p_jax.faults import COLLAPSED, SKIPPED, CollapseWatch
from p2p_jax.job import AXIS, Job
from p2p_jax.lookup import UserError
from p2p_jax.state import TrainState
from p2p_jax.steps import after_evaluation, train_step
from p2p_jax.stop import Stop, Stopped

if TYPE_CHECKING:
    from clu.metric_writers import MetricWriter

# Steps that may wait on the device: enough that it never starves, few enough that batches do not pile up there.
# Several forced CPU devices deadlock when many collectives are queued, which this prevents as well.
_IN_FLIGHT = 16
# But no more than take so many seconds, which all have to end before a training that is asked to stop can.
_AHEAD = 2.0


def length_in_steps(config: ml_collections.ConfigDict, key: str, steps_per_epoch: int) -> int:
    """Returns a length that the configuration gives either in steps or in epochs.

    Args:
      config: complete.
      key: of the pair without its ending, for example 'train.' or 'log.every_'.
      steps_per_epoch: generator updates an epoch.

    Raises:
      UserError: both are given, or neither, or less than 1.
    """
    section, _, prefix = key.partition('.')
    steps, epochs = config[section][f'{prefix}steps'], config[section][f'{prefix}epochs']
    given = f'{key}steps={steps} and {key}epochs={epochs}'
    if (steps is None) == (epochs is None):
        raise UserError(f'{given}: give one of them and set the other to None')
    if (epochs if steps is None else steps) < 1:
        raise UserError(f'{given}: expected at least 1')
    return epochs * steps_per_epoch if steps is None else steps


@dataclasses.dataclass(frozen=True)
class Lengths:
    """All lengths of a training in steps: its total, and the intervals of logging, evaluation and checkpoints."""

    total: int
    log: int
    evaluate: int
    save: int

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, examples: int) -> 'Lengths':
        """Converts the lengths of a configuration for a training set of so many examples.

        An epoch is a pass over them, of which D's further updates take their share.
        """
        batches = config.gan.d_steps if config.gan.weight else 1
        per_epoch = math.ceil(examples / (config.train.batch_size * batches))
        return cls(
            length_in_steps(config, 'train.', per_epoch),
            length_in_steps(config, 'log.every_', per_epoch),
            length_in_steps(config, 'eval.every_', per_epoch),
            length_in_steps(config, 'checkpoint.every_', per_epoch),
        )


def say(line: str) -> None:
    """Prints for people, from one process only, at once also where the output is a file."""
    if jax.process_index() == 0:
        print(line, flush=True)


@dataclasses.dataclass
class Progress:
    """What the progress line says: where training stands, how fast it is, when it will end."""

    first: int
    total: int
    batch_size: int
    started: float = dataclasses.field(default_factory=time.monotonic)
    marked: tuple[int, float] = (0, 0.0)
    waited: float = 0.0
    last_score: str = ''

    def mark(self, step: int) -> None:
        """Starts the clock of the next rates, after a step or whatever else took time."""
        self.marked, self.waited = (step, time.monotonic()), 0.0

    def rates(self, step: int) -> dict[str, float]:
        """Returns images a second and the share of the time waited for data, both since the last mark, and marks."""
        (since, began), waited = self.marked, self.waited
        self.mark(step)
        seconds = self.marked[1] - began
        return {'images_per_second': (step - since) * self.batch_size / seconds, 'data_wait': waited / seconds}

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the batches, and remembers how long they were waited for."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def line(self, step: int, means: dict[str, float]) -> str:
        """Returns the line for a step."""
        left = (time.monotonic() - self.started) / max(step - self.first, 1) * (self.total - step)
        losses = ' '.join(f'{k.removeprefix("loss/")} {v:.4g}' for k, v in means.items() if k.startswith('loss/'))
        parts = [
            f'step {step}/{self.total} ({step / self.total:.0%})',
            f'ETA {report.duration(left)}',
            f'{means["images_per_second"]:.1f} images/s',
            losses,
            self.last_score,
        ]
        return ' | '.join(part for part in parts if part)


class InFlight:
    """The steps that the device was given and that may still run."""

    def __init__(self) -> None:
        self._waiting: collections.deque[jax.Array] = collections.deque()
        self._allowed = 1
        self._ended = 0.0

    def add(self, result: jax.Array) -> None:
        """Adds a step by something that it computes, and waits until no more run than may."""
        self._waiting.append(result)
        while len(self._waiting) > self._allowed:
            self._waiting.popleft().block_until_ready()
            now = time.monotonic()
            if self._ended:
                self._allowed = int(min(max(_AHEAD / max(now - self._ended, 1e-9), 1), _IN_FLIGHT))
            self._ended = now


class NonFinite(Exception):  # noqa: N818 - no error where training goes back
    """A loss or gradient was not finite, and training must not go on as it is.

    Attributes:
      state: in which the networks are as before that update.
    """

    def __init__(self, state: TrainState):
        super().__init__('a loss or gradient was not finite')
        self.state = state


Steps = dict[str, Callable[..., tuple[TrainState, dict[str, jax.Array]]]]


def compiler_options() -> dict[str, Any]:
    """Returns what XLA's compiler is told about training's programs.

    On a CPU its effort for the loops between matrix products and convolutions takes a quarter of the time to the first
    step and gains nothing after it; and it drops the barriers without which `settle` and `train.remat` are undone
    (measured: experiments/benchmarks/NOTES.md). What XLA_FLAGS says takes precedence.
    """
    if jax.default_backend() != 'cpu':
        return {}
    options = {'xla_backend_optimization_level': 1, 'xla_disable_hlo_passes': 'cse_barrier_expander'}
    return {name: value for name, value in options.items() if name not in os.environ.get('XLA_FLAGS', '')}


def _compiled(function: Any) -> Callable[..., Any]:
    """Compiles a mapped function with those options when it is first called, for arguments of those shapes."""
    # Of several processes a compiled program wants the arrays of all, which `pmap` itself puts together.
    if not compiler_options() or jax.process_count() > 1:
        return function
    programs: list[Callable[..., Any]] = []

    def call(*arguments: Any) -> Any:
        if not programs:
            programs.append(function.lower(*arguments).compile(compiler_options()))
        return programs[0](*arguments)

    return call


def map_step(job: Job, phase: str) -> Any:
    """Returns the train step of a phase, mapped over the devices: f(state, batch, frozen); the state is donated."""
    return jax.pmap(
        functools.partial(train_step, job, phase),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
    )


def map_steps(job: Job, total: int) -> Steps:
    """Returns the mapped train step of each phase; each is compiled when it is first called."""
    return {phase: _compiled(map_step(job, phase)) for phase in {phase for _, phase in job.phases(0, total)}}


@dataclasses.dataclass
class Standing:
    """Where a training stands, beside its state, so that it goes on as if it had not stopped.

    Attributes:
      recent: the metrics of each step since the last log.
      alone: updates of D alone since the state's step.
      due: the evaluation of the state's step is not done yet.
      collapsed: kind of collapse to the updates in a row before `recent` in which D was so.
    """

    recent: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    alone: int = 0
    due: bool = False
    collapsed: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns what a checkpoint stores."""
        recent = [{name: float(value) for name, value in step.items()} for step in jax.device_get(self.recent)]
        return dataclasses.asdict(dataclasses.replace(self, recent=recent))

    @classmethod
    def of(cls, stored: dict[str, Any]) -> 'Standing':
        """Returns what `to_json` gave; also of nothing."""
        standing = cls(**stored)
        standing.recent = [{k: np.float32(v) for k, v in step.items()} for step in standing.recent]
        return standing


@dataclasses.dataclass
class Run:
    """A training that is ready to go."""

    config: ml_collections.ConfigDict
    job: Job
    steps: Steps
    frozen: dict[str, Any]
    lengths: Lengths
    data: TrainData
    evaluate: Callable[[Any], Any]
    checkpoints: Checkpoints
    workdir: Path
    signals: Stop
    writer: 'MetricWriter'
    standing: Standing

    def __post_init__(self) -> None:
        self.watch = CollapseWatch(self.job.faults, self.standing.collapsed)
        self.unsaid: tuple[int, list[dict[str, Any]]] | None = None  # a step whose log is due, and its metrics
        self.artist = concurrent.futures.ThreadPoolExecutor(1)
        self.drawing: tuple[int, concurrent.futures.Future[np.ndarray]] | None = None

    def raise_on_fault(self, state: TrainState) -> None:
        """Waits for the state; raises NonFinite if training must not go on from it."""
        if state.fault.step >= 0:
            raise NonFinite(state)

    def log(self, progress: Progress, state: TrainState) -> None:
        """Writes the means of the metrics that are due and prints the progress line; raises NonFinite where it is due.

        By then the device has its next step, or there is none: it does not wait for what is done here.

        Args:
          progress: of the training.
          state: of that step or a later one.
        """
        if self.unsaid is None:
            return
        (step, recent), self.unsaid = self.unsaid, None
        history = jax.device_get(recent)
        skipped = sum(bool(values.get(SKIPPED)) for values in history)
        seen = [values for values in history if not values.get(SKIPPED)] or history
        # Not every step has every metric: D may start between two logs.
        means = {name: float(np.mean([values[name] for values in seen if name in values])) for name in seen[-1]}
        if SKIPPED in means:
            means[SKIPPED] = skipped / len(history)
        notes = [f'{skipped} of {len(history)} updates skipped'] if skipped else []
        for line in self.watch.see(history):
            say(f'step {step}: warning: {line}')
        if 'd/real' in means:
            means[COLLAPSED] = float(bool(self.watch.collapsed))
            notes += [f'D collapsed ({self.watch.collapsed})'] if self.watch.collapsed else []
        means |= progress.rates(step)
        self.writer.write_scalars(step, means)
        say(' | '.join([progress.line(step, means), *notes]))
        # A state that training must not go on from has such a term in its metrics; otherwise nothing waits for it.
        if not all(np.isfinite(value) for values in history for value in values.values()):
            self.raise_on_fault(state)

    def validate(self, progress: Progress, step: int, state: TrainState) -> TrainState:
        """Scores the state on the validation split, shows pictures, saves it with its score, and returns it.

        What depends on the score changes at the regular evaluations only, so that it does not matter where a training
        ended before it went on. Images from labels have no score.
        """
        self.raise_on_fault(state)
        regular = step % self.lengths.evaluate == 0
        if self.job.classes:
            rows = self.look(step, state)
            self.show(step, rows, (), self.job.classes)
            state = after_evaluation(self.job, state, None) if regular else state
            self.save(step, state)
            return state
        evaluation = self.look(step, state)
        scores = evaluation.scores
        psnr = scores['output']['psnr']
        if not math.isfinite(psnr):
            raise UserError(f'step {step}: the validation PSNR is {psnr}; not saved. A lower optim.lr may help.')
        named = {f'val/{m}': value for m, value in scores['output'].items()}
        named |= {f'val/input_{m}': value for m, value in scores['input'].items()}
        self.writer.write_scalars(step, named)
        self.show(step, evaluation.pictures, [*self.config.eval.names, 'target'])
        say(describe(self.config, f'validation at step {step}', evaluation))
        progress.last_score = f'val {psnr:.2f} dB'
        if regular:
            state = after_evaluation(self.job, state, scores['output'])
        self.save(step, state, psnr)
        return state

    def show(self, step: int, rows: list[list[np.ndarray]], *names: Any) -> None:
        """Draws rows of images and writes the picture, in a thread of its own; nothing where there are none.

        From one process only. A training that is killed meanwhile loses that picture and nothing else.
        """
        self.finish_drawing()
        if all(rows) and rows and jax.process_index() == 0:
            self.drawing = step, self.artist.submit(self._draw, step, functools.partial(report.grid, rows, *names))

    def _draw(self, step: int, draw: Callable[[], np.ndarray]) -> np.ndarray:
        picture = draw()
        images.write_image(self.workdir / 'samples' / f'{step:07}.png', picture)
        return picture

    def finish_drawing(self) -> None:
        """Waits for the last picture and hands it to the writer, which is not for several threads."""
        if self.drawing:
            (step, picture), self.drawing = self.drawing, None
            self.writer.write_images(step, {'val': picture.result()[None]})

    def stopped(self, state: TrainState) -> bool:
        """Whether `train.patience` is at its end, and says so."""
        patience, stalled = self.config.train.patience, int(state.stalled)
        if patience is None or stalled < patience:
            return False
        say(
            f'train.patience={patience}: {stalled} evaluations in a row without a better PSNR than '
            f'{float(state.best_psnr):.2f} dB; ended at step {int(state.step)}'
        )
        return True

    def save(self, step: int, state: TrainState, psnr: float | None = None) -> None:
        """Saves a state that is known to be finite; the log reaches the disk before it."""
        self.raise_on_fault(state)
        self.writer.flush()
        self.checkpoints.save(state, step, self.config.to_dict(), psnr, self.standing.to_json())

    def look(self, step: int, state: TrainState) -> Any:
        """Evaluates the state; asked to stop meanwhile, saves it instead."""
        try:
            return self.evaluate(state.evaluated)
        except Stopped:
            raise self.stop(step, state, due=True) from None

    def stop(self, step: int, state: TrainState, *, due: bool = False) -> Stopped:
        """Saves a training that was asked to stop; returns what to raise.

        Args:
          step: the state's.
          state: to save.
          due: the evaluation of this step is left for the next time.
        """
        self.signals.finishing()
        self.standing.due = due
        self.save(step, state)
        say(f'asked to stop: saved at step {step} of {self.lengths.total}')
        return self.signals.stopped()

    def watch_pretraining(self, state: TrainState, step: int) -> None:
        """Says how far D is, where it is trained alone for longer than a log interval."""
        adversary = self.job.adversary
        assert adversary
        recent = self.standing.recent
        alone, count = len(recent), adversary.pretrain_steps
        if step == adversary.start_step + 1 and alone % self.lengths.log == 0 and alone <= count:
            losses = {name: float(recent[-1][f'loss/{name}']) for name in ('d_real', 'd_generated')}
            shown = ' '.join(f'{name} {value:.4g}' for name, value in losses.items())
            say(f'step {step - 1}: discriminator alone, update {alone} of {count} | {shown}')
            self.raise_on_fault(state)

    def loop(self, state: TrainState) -> None:
        """Trains to the end. Nothing in here waits for the device but at the intervals."""
        with self.artist:
            self._loop(state)
            self.finish_drawing()

    def _loop(self, state: TrainState) -> None:
        first, lengths = int(state.step), self.lengths
        plan = list(self.job.phases(first, lengths.total))[self.standing.alone :]
        progress = Progress(first, lengths.total, self.config.train.batch_size)
        in_flight = InFlight()
        if self.standing.due:
            self.standing.due = False
            state = self.validate(progress, first, state)
            if self.stopped(state):
                return
        batches = progress.timed(self.data.batches(int(state.batch), len(plan)))
        for (step, phase), batch in zip(plan, batches, strict=True):
            local = split_over_devices(batch, jax.local_device_count())
            state, metrics = self.steps[phase](state, local, self.frozen)
            self.standing.recent.append(metrics)
            in_flight.add(jax.tree.leaves(metrics)[0])
            self.log(progress, state)
            self.checkpoints.check()
            if not progress.marked[1]:
                jax.block_until_ready(metrics)
                say(f'first step after {report.duration(time.monotonic() - progress.started)}, compilation included')
                progress.first, progress.started = step, time.monotonic()
                progress.mark(step)
            if phase == 'discriminator':
                self.standing.alone += 1
                self.watch_pretraining(state, step)
                if self.signals.requested():
                    raise self.stop(step - 1, state)
                continue
            self.standing.alone = 0
            if step % lengths.log == 0 or step == lengths.total:
                self.unsaid, self.standing.recent = (step, self.standing.recent), []
            due = step % lengths.evaluate == 0 or step == lengths.total
            asked = self.signals.requested()
            if asked or due or step % lengths.save == 0:
                self.log(progress, state)
            if asked:
                raise self.stop(step, state, due=due)
            if due:
                state = self.validate(progress, step, state)
                progress.mark(step)
                if self.stopped(state):
                    return
            elif step % lengths.save == 0:
                self.save(step, state)
