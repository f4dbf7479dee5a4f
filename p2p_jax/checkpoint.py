"""Checkpoints: the latest two and the best by validation PSNR, each with its configuration inside."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import preservation_policy

from p2p_jax.lookup import UserError
from p2p_jax.state import TrainState

FOLDER = 'checkpoints'


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


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous; `close` waits for it."""

    def __init__(self, workdir: Path, *, read_only: bool = False):
        """
        Args:
          workdir: of the training.
          read_only: nothing is created or deleted.

        Raises:
          UserError: `read_only` and there is nothing to read, or `workdir` is a file.
        """
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f'--workdir={workdir}: that is a file; expected a folder, which may be new')
        self.folder = workdir.absolute() / FOLDER
        if read_only and not self.folder.is_dir():
            raise UserError(f'{workdir}: no checkpoints there. Give the --workdir of a training.')
        best = preservation_policy.BestN(
            get_metric_fn=_psnr, reverse=False, n=1, keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=('state', 'config'),
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                best_fn=_psnr,
                preservation_policy=preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(2), best]),
            ),
        )

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def find(self, which: str) -> int:
        """Returns the step that 'best', 'latest' or a number names; best is the latest where none has a score.

        Raises:
          UserError: there is no such checkpoint; the message lists those that there are.
        """
        steps = sorted(self._manager.all_steps())
        chosen = {'best': self._manager.best_step(), 'latest': self.latest()}
        chosen['best'] = self.latest() if chosen['best'] is None else chosen['best']
        if which.isdecimal() and int(which) in steps:
            return int(which)
        step = chosen.get(which)
        if step is None:
            there = ', '.join(map(str, steps)) or 'none'
            raise UserError(
                f'--checkpoint={which}: expected best, latest or one of the steps in {self.folder}: {there}'
            )
        return step

    def save(self, state: TrainState, step: int, config: dict[str, Any], psnr: float | None) -> None:
        """Starts to save.

        Args:
          state: of the training; it may be donated once this returns.
          step: its step.
          config: complete.
          psnr: the validation PSNR in dB of this very state, or None; without one it never competes for best.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_rewrap(state, jax.devices())), config=ocp.args.JsonSave(config)
            ),
            metrics=None if psnr is None else {'psnr': psnr},
        )

    def config(self, step: int) -> dict[str, Any]:
        """Returns the configuration that is inside the checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))['config']

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """Returns a saved state, a copy on each local device.

        Args:
          step: of the checkpoint.
          shapes: the structure to restore, as `jax.eval_shape` gives it.
        """
        sharding = _everywhere(jax.devices())
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
        return _rewrap(restored['state'], jax.local_devices())

    def wait(self) -> None:
        """Waits until all is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all is on disk, and ends."""
        self.wait()
        self._manager.close()
