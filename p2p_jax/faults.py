"""What is done where numbers go wrong, and the watch over a discriminator that collapsed."""

import dataclasses
from collections.abc import Iterable, Mapping

ON_NONFINITE = ('raise', 'skip', 'rollback')
SKIPPED = 'fault/skipped'  # the metric: 1 where an update was left out, else 0
COLLAPSED = 'd/collapsed'  # the metric: 1 while D is collapsed, else 0

# How D may collapse, and what to do.
_COLLAPSES = {
    'won': (
        'its losses are 0, and the generator learns nothing from it; a lower optim.discriminator.lr, '
        'gan.label_smoothing or gan.r1_weight may help'
    ),
    'blind': 'it scores real and generated images alike; a lower optim.discriminator.lr or another gan.mode may help',
}


@dataclasses.dataclass(frozen=True)
class FaultOptions:
    """The keys of the section `fault`.

    Attributes:
      on_nonfinite: one of ON_NONFINITE.
      skip_limit: updates left out in a row that stop training.
      rollback_limit: how many times training goes back before it stops.
      rollback_lr_factor: each time the learning rates are multiplied by this.
      collapse_steps: updates of D in a row after which it is said to have collapsed; None: never.
      collapse_eps: below it, losses and the difference of scores count as 0.
    """

    on_nonfinite: str
    skip_limit: int
    rollback_limit: int
    rollback_lr_factor: float
    collapse_steps: int | None
    collapse_eps: float

    @property
    def limit(self) -> int:
        """Non-finite updates in a row that stop training, or take it back."""
        return self.skip_limit if self.on_nonfinite == 'skip' else 1


class CollapseWatch:
    """Counts how long D has been collapsed: sure of everything, or blind.

    It is sure where both of its losses are within eps of 0: it won, and the generator's gradients vanish. It is blind
    where the mean scores of real and of generated images are within eps of each other: it says the same of all.
    """

    def __init__(self, options: FaultOptions, rows: dict[str, int]):
        """
        Args:
          options: how long, and what counts as 0.
          rows: kind of collapse to the updates in a row so far; kept up to date.
        """
        self._options = options
        self._rows = rows

    def see(self, history: Iterable[Mapping[str, float]]) -> list[str]:
        """Takes further updates in.

        Args:
          history: the metrics of each update; those without D's do not count.

        Returns:
          A line for each kind of collapse that became long enough in them.
        """
        steps, eps = self._options.collapse_steps, self._options.collapse_eps
        lines = []
        for values in history:
            if steps is None or 'd/real' not in values:
                continue
            found = {
                'won': abs(values['loss/d_real']) < eps and abs(values['loss/d_generated']) < eps,
                'blind': abs(values['d/real'] - values['d/generated']) < eps,
            }
            for kind, is_so in found.items():
                self._rows[kind] = self._rows.get(kind, 0) + 1 if is_so else 0
                if self._rows[kind] == steps:
                    lines.append(f'the discriminator collapsed for {steps} updates: {_COLLAPSES[kind]}')
        return lines

    @property
    def collapsed(self) -> str:
        """Which kinds of collapse go on, joined by and; '' where D works."""
        steps = self._options.collapse_steps
        return ' and '.join(kind for kind, row in self._rows.items() if steps and row >= steps)
