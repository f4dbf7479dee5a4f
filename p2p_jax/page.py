"""The page that `evaluate` writes: what was scored, as `html` shows it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from p2p_jax import html, report, summary
from p2p_jax.files import write_file
from p2p_jax.inference import Model
from p2p_jax.intervals import Interval
from p2p_jax.metrics import PROTOCOLS
from p2p_jax.scoring import ImageResult, ModelResult

BUDGET = 30  # megabytes


def curves(models: Sequence[Model | str]) -> list[html.Curve]:
    """Returns the curves of the first model that is a training.

    Raises:
      UserError: its log is damaged.
    """
    workdirs = [model.origin for model in models if not isinstance(model, str) and model.origin.is_dir()]
    return html.read_curves(workdirs[0]) if workdirs else []


def save(path: Path, text: str) -> None:
    """Writes a page, and says where."""
    write_file(path, text.encode())
    print(f'page: {path}')


def _rows(results: Sequence[ModelResult], names: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """The input, the output of each model, and the gain where there is one model."""
    means = [summary.means(result) for result in results]
    rows = {names[0]: means[0]['input']}
    if len(results) == 1:
        return rows | {names[1]: means[0]['output'], 'gain': means[0]['gain']}
    return rows | {result.name: mean['output'] for result, mean in zip(results, means, strict=True)}


def _breakdowns(results: Sequence[ModelResult], names: Sequence[str]) -> dict[str, dict[str, html.Rows]]:
    """The same of the images that share an attribute's value."""

    def those(key: str, value: str) -> list[ModelResult]:
        kept = [i for i, image in enumerate(results[0].images) if summary.attributes(image).get(key, '') == value]
        return [dataclasses.replace(r, images=tuple(r.images[i] for i in kept)) for r in results]

    return {
        key: {value: _rows(those(key, value), names) for value in values}
        for key, values in summary.breakdown(results).items()
    }


def _example(image: ImageResult) -> html.Example:
    shown = image.pictures()
    pictures = html.encode(shown['input'], shown['output'], shown['target'])
    return html.Example(image.name, summary.attributes(image), image.scores, pictures)


def write(
    path: Path, title: str, results: Sequence[ModelResult], names: Sequence[str], curves: Sequence[html.Curve]
) -> None:
    """Writes the page; its pictures are the first model's.

    Args:
      path: of the page.
      title: what was scored.
      results: of at least one model, on the same images.
      names: of inputs and outputs.
      curves: of the training.
    """
    first = results[0]
    protocol = '\n'.join([*(row.text for row in PROTOCOLS.values()), summary.interval_text(first)])
    notes = [f'Pictures: {first.name}.'] if len(results) > 1 else []
    count = len(first.images)
    heading = f'{count} example{"s" if count > 1 else ""}: mean [interval]'
    about = html.Summary(
        heading, _rows(results, names), _breakdowns(results, names), (names[0], names[1]), protocol, notes
    )
    examples = []
    with report.progress_bar(len(first.images), 'pictures of the page') as bar:
        for image in first.images:
            examples.append(_example(image))
            bar.update()
    save(path, html.render(title, about, examples, curves, budget_mb=BUDGET))
