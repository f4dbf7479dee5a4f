"""Checkpoints: the latest two and the best by validation PSNR, each with its configuration and digests inside."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import preservation_policy

from p2p_jax import files, integrity
from p2p_jax.lookup import UserError, shortlist
from p2p_jax.state import TrainState

FOLDER = 'checkpoints'
DAMAGED = 'damaged'  # beside it: where checkpoints go that are not what was saved
_UNFINISHED = '.orbax-checkpoint-tmp'  # ending of a folder that is being written


def _psnr(metrics: dict[str, float]) -> float:
    return metrics['psnr']


def _everywhere(devices: list[jax.Device]) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(devices), ('devices',)), PartitionSpec())


def replicate(state: Any) -> Any:
    """Puts one copy of every leaf on each device of this process, where the mapped step takes it from."""
    return jax.device_put(state, _everywhere(jax.local_devices()))


def _rewrap(state: TrainState, devices: list[jax.Device]) -> TrainState:
    """Declares this process's copies to be arrays over other devices; no data moves.

    The mapped step gives arrays over the process's own devices, but Orbax saves and restores only arrays over the
    devices of all processes.
    """
    if jax.process_count() == 1:
        return state
    sharding = _everywhere(devices)

    def wrap(leaf: jax.Array) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(wrap(jax.random.key_data(leaf)))
        copies = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)

    return jax.tree.map(wrap, state)


def _warn(line: str) -> None:
    if jax.process_index() == 0:
        print(f'warning: {line}', file=sys.stderr, flush=True)


def _steps(folder: Path) -> list[int]:
    """The steps of all checkpoints, the newest first."""
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(path.name) for path in there if path.name.isdecimal() and path.is_dir()), reverse=True)


def _set_damaged_aside(folder: Path) -> None:
    """Moves checkpoints that are not what was saved out of the way of a training that goes on.

    Raises:
      UserError: none is whole; nothing was touched.
    """
    found = {step: integrity.find_damage(folder / str(step)) for step in _steps(folder)}
    damaged = {step: damage for step, damage in found.items() if damage}
    if damaged and len(damaged) == len(found):
        raise UserError(
            f'{folder}: no checkpoint is as it was saved (nothing was touched):{shortlist([*damaged.values()])}\n'
            'Restore the files, or give another --workdir.'
        )
    for step, damage in damaged.items():
        aside = folder.with_name(DAMAGED) / str(step)
        _warn(f'{damage}; the checkpoint of step {step} is passed over, and moved to {aside}')
    if not damaged:
        return
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices('damage seen by all')
    if jax.process_index() == 0:
        for step in damaged:
            aside = folder.with_name(DAMAGED) / str(step)
            aside.parent.mkdir(exist_ok=True)
            while aside.exists():  # of an earlier time
                aside = aside.with_name(f'{aside.name}_')
            (folder / str(step)).rename(aside)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices('damage set aside')


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous; `close` waits for it."""

    def __init__(self, workdir: Path, *, read_only: bool = False):
        """
        Args:
          workdir: of the training.
          read_only: nothing is created, moved or deleted. Otherwise checkpoints that are not what was saved are moved
            out of the way, and what a killed process left unfinished is removed.

        Raises:
          UserError: `read_only` and there is nothing to read, `workdir` is a file, or all checkpoints are damaged.
        """
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f'--workdir={workdir}: that is a file; expected a folder, which may be new')
        self.folder = workdir.absolute() / FOLDER
        if read_only and not self.folder.is_dir():
            raise UserError(f'{workdir}: no checkpoints there. Give the --workdir of a training.')
        if not read_only:
            _set_damaged_aside(self.folder)
        self._saving: int | None = None
        best = preservation_policy.BestN(
            get_metric_fn=_psnr, reverse=False, n=1, keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=('state', 'config', integrity.SINCE),
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                # Scores are read when they are asked for: a damaged file must not be in the way of the others.
                lightweight_initialize=read_only,
                cleanup_tmp_directories=not read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                best_fn=_psnr,
                preservation_policy=preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(2), best]),
            ),
        )

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def _whole(self, steps: list[int]) -> int | None:
        """The first of the steps whose checkpoint is what was saved; says of the others what is wrong."""
        for step in steps:
            damage = integrity.find_damage(self.folder / str(step))
            if damage is None:
                return step
            _warn(f'{damage}; the checkpoint of step {step} is passed over')
        return None

    def find(self, which: str) -> int:
        """Returns the step that 'best', 'latest' or a number names; best is the latest where none has a score.

        Of best and latest, a checkpoint that is not what was saved is passed over, with a warning.

        Raises:
          UserError: there is no such checkpoint, and the message lists those that there are; or it is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if which.isdecimal() and int(which) in steps:
            damage = integrity.find_damage(self.folder / which)
            if damage:
                raise UserError(f'--checkpoint={which}: {damage}. Others are those of {shortlist([*map(str, steps)])}')
            return int(which)
        if not steps or which not in ('best', 'latest'):
            there = ', '.join(map(str, reversed(steps))) or 'none'
            raise UserError(
                f'--checkpoint={which}: expected best, latest or one of the steps in {self.folder}: {there}'
            )
        if which == 'best':
            scores = {step: psnr for step in steps if (psnr := self._score(step)) is not None}
            steps = sorted(scores, key=lambda step: (scores[step], step), reverse=True) + [
                step for step in steps if step not in scores
            ]
        found = self._whole(steps)
        if found is None:
            raise UserError(f'{self.folder}: no checkpoint is as it was saved')
        return found

    def _score(self, step: int) -> float | None:
        try:
            return json.loads((self.folder / str(step) / 'metrics' / 'metrics').read_bytes())['psnr']
        except (OSError, ValueError, KeyError):
            return None  # none was saved, or it is damaged, which is told when this step is looked at

    def _seal(self) -> None:
        """Called by Orbax when a checkpoint is complete but for its name."""
        (unfinished,) = self.folder.glob(f'{self._saving}{_UNFINISHED}*')
        integrity.seal(unfinished)

    @contextlib.contextmanager
    def _saves(self) -> Iterator[None]:
        """Turns what goes wrong with a save, which Orbax tells in many ways, into a UserError."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            step, self._saving = self._saving, None
            whole = next((s for s in _steps(self.folder) if integrity.find_damage(self.folder / str(s)) is None), None)
            good = f'the last good one is that of step {whole}' if whole is not None else 'there is none yet'
            why = files.reason(error) if isinstance(error, OSError) else str(error).splitlines()[0]
            raise UserError(
                f'{self.folder}: the checkpoint of step {step} was not written ({why}); {good}. Started again when '
                'that is mended, the training goes on from there.'
            ) from error

    def save(
        self,
        state: TrainState,
        step: int,
        config: dict[str, Any],
        psnr: float | None,
        standing: dict[str, Any] | None = None,
    ) -> None:
        """Starts to save; a checkpoint of the same step is replaced.

        Args:
          state: of the training; it may be donated once this returns.
          step: its step.
          config: complete.
          psnr: the validation PSNR in dB of this very state, or None; without one it never competes for best.
          standing: what else a training needs to go on as if it had not stopped; JSON.

        Raises:
          UserError: this save, or the one before, cannot be written.
        """
        with self._saves():
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_rewrap(state, jax.devices())),
                    config=ocp.args.JsonSave(config),
                    **{integrity.SINCE: ocp.args.JsonSave(standing or {})},
                ),
                metrics=None if psnr is None else {'psnr': psnr},
            )

    def check(self) -> None:
        """Raises a UserError if the last save has failed meanwhile; waits for nothing."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            with self._saves():
                self._manager.wait_until_finished()
            self._saving = None

    def config(self, step: int) -> dict[str, Any]:
        """Returns the configuration that is inside the checkpoint."""
        return self._read(step, 'config', ocp.args.JsonRestore())

    def standing(self, step: int) -> dict[str, Any]:
        """Returns what was saved as such; empty for a checkpoint of a version that knew none."""
        there = (self.folder / str(step) / integrity.SINCE).is_dir()
        return self._read(step, integrity.SINCE, ocp.args.JsonRestore()) if there else {}

    def _read(self, step: int, item: str, how: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise UserError(f'{self.folder / str(step) / item} cannot be read ({reason})') from error

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """Returns a saved state, a copy on each local device.

        Args:
          step: of the checkpoint.
          shapes: the structure to restore, as `jax.eval_shape` gives it.
        """
        sharding = _everywhere(jax.devices())
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
        return _rewrap(self._read(step, 'state', ocp.args.StandardRestore(target)), jax.local_devices())

    def wait(self) -> None:
        """Waits until all is on disk; a UserError if that fails."""
        with self._saves():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all is on disk, and ends."""
        self.wait()
        self._manager.close()
