"""Where scalars and pictures go: TensorBoard, the log, metrics.jsonl. Imports TensorFlow, which CLU needs for it."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clu import metric_writers

from p2p_jax.files import naming


class JsonLines(metric_writers.MetricWriter):
    """Writes scalars to a file, one JSON object a line: {"step", "time" (Unix), name: value}; NaN becomes null."""

    def __init__(self, path: Path):
        self._path, self._file = path, path.open('a')

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one line."""
        values = {name: float(value) for name, value in scalars.items()}
        line: dict[str, Any] = {'step': step, 'time': round(time.time(), 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        with naming(self._path):
            self._file.write(json.dumps(line) + '\n')

    def flush(self) -> None:
        """Hands the lines to the system."""
        with naming(self._path):
            self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        with naming(self._path):
            self._file.close()

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        """Pictures and texts have no place in this file."""

    write_summaries = write_images = write_videos = write_audios = write_texts = _ignore
    write_histograms = write_hparams = _ignore


def build_writer(workdir: Path, only_log: bool) -> metric_writers.MetricWriter:
    """Returns the writer of a training: event files and metrics.jsonl in `workdir`, and the log.

    Args:
      workdir: of the training.
      only_log: leaves the files out, for all processes but one.
    """
    if only_log:
        return metric_writers.LoggingWriter()
    return metric_writers.AsyncMultiWriter(
        [
            metric_writers.SummaryWriter(str(workdir)),
            metric_writers.LoggingWriter(),
            JsonLines(workdir / 'metrics.jsonl'),
        ]
    )
