"""Scores: every example of a split exactly once; quickly during training, at length by the verb `evaluate`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from p2p_jax import contenders, inference, page, report, summary
from p2p_jax.baselines import BASELINES
from p2p_jax.checkpoint import replicate
from p2p_jax.data import images
from p2p_jax.data.pipeline import Shard, evaluation_batches, split_over_devices
from p2p_jax.data.records import SPLITS, Record
from p2p_jax.datasets import check_stored_splits, find_splits, has_split, trained_on
from p2p_jax.job import AXIS, Job, build_job, takes_labels
from p2p_jax.lookup import UserError, pick, shortlist
from p2p_jax.metrics import PROTOCOLS, EvaluationMetrics
from p2p_jax.predictor import PredictOptions
from p2p_jax.scoring import Examples, ModelResult, build_score, score_models
from p2p_jax.steps import evaluation_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over a split.

    Attributes:
      scores: {'input': {'psnr' in dB, 'ssim', 'lpips' where asked for}, 'output': the same, 'count': of examples}.
      pictures: of the first examples: input, output, target, float (h, w, 3) in [0, 1].
    """

    scores: dict[str, Any]
    pictures: list[list[np.ndarray]]


def build_evaluator(
    job: Job, config: ml_collections.ConfigDict, records: Sequence[Record], between: Callable[[], None] = lambda: None
) -> Callable[[Any], Evaluation]:
    """Returns a function of the generator's variables that scores them on the records.

    It compiles once for each image size. Degradations depend on the seed and the example's place alone, and the
    result does not depend on the batch size or the number of devices.

    Args:
      job: what was trained.
      config: complete.
      records: of one split, checked.
      between: called before each batch; what it raises ends the evaluation.

    Raises:
      UserError: LPIPS is asked for and its weights are missing.
    """
    step = jax.pmap(
        functools.partial(evaluation_step, job), axis_name=AXIS, in_axes=(None, None, 0, None), out_axes=(None, 0, 0)
    )
    devices = jax.device_count()
    batch_size = -(-config.eval.batch_size // devices) * devices
    shard = Shard(jax.process_index(), jax.process_count())
    key = replicate(jax.random.key(config.seed))
    frozen = replicate(job.lpips.read_weights()) if job.lpips else None

    def evaluate(variables: Any) -> Evaluation:
        """Scores the variables, which are equal on all devices."""
        total: EvaluationMetrics | None = None
        pictures: list[list[np.ndarray]] = []
        batches = evaluation_batches(
            records,
            batch_size=batch_size,
            crop_size=config.eval.crop_size,
            channels=config.data.channels,
            shard=shard,
            threads=config.data.threads,
        )
        for batch in batches:
            between()
            scores, *shown = step(variables, key, split_over_devices(batch, jax.local_device_count()), frozen)
            total = scores if total is None else total.merge(scores)
            wanted = min(config.eval.pictures - len(pictures), int(batch['mask'].sum()))
            if wanted > 0:
                flat = [np.asarray(image).reshape(-1, *image.shape[2:])[:wanted] for image in shown]
                targets = batch['target'][:wanted] / np.float32(np.iinfo(batch['target'].dtype).max)
                pictures += [list(row) for row in zip(*flat, targets, strict=True)]
        assert total is not None, 'a split is never empty'
        return Evaluation(_scores(total), pictures)

    return evaluate


def _scores(total: EvaluationMetrics) -> dict[str, Any]:
    values = {name: float(value) for name, value in total.compute().items()}
    names = [name.removeprefix('output_') for name in values if name.startswith('output_')]
    sides = {side: {m: values[f'{side}_{m}'] for m in names} for side in ('input', 'output')}
    return {**sides, 'count': int(total.output_psnr.count)}


def describe(config: ml_collections.ConfigDict, split: str, evaluation: Evaluation) -> str:
    """Returns the table of an evaluation, with what the numbers depend on."""
    crop = config.eval.crop_size
    shown = f'central {crop}×{crop}' if crop else 'whole images'
    scores = evaluation.scores
    title = f'{split}: {scores["count"]} examples, {shown}; float, clamped; SSIM per channel, 11×11 Gaussian, valid'
    if config.eval.lpips != 'none':
        title += f'; LPIPS 0.1 ({config.eval.lpips}), less is better'
    return report.table(
        title, {name: scores[side] for name, side in zip(config.eval.names, ('input', 'output'), strict=True)}
    )


def evaluate_model(
    model: inference.Model,
    output: Path | None = None,
    picture: Path | None = None,
    between: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Scores a model on the test split and prints the table, as training does at its end.

    Args:
      model: what is scored.
      output: a JSON file to write the scores to.
      picture: a PNG file to draw the first examples to.
      between: see `build_evaluator`.
      say: prints a line.

    Raises:
      UserError: something wrong with the data, or a model that makes images from labels.
    """
    refuse_labels([model])
    splits = find_splits(model.config, ['test'], say)
    check_stored_splits(model.origin, splits)
    say(f'{model}, {len(splits["test"])} test examples …')
    evaluation = build_evaluator(model.job, model.config, splits['test'], between)(model.variables)
    say(describe(model.config, 'test', evaluation))
    if output and jax.process_index() == 0:
        report.write_json(output, evaluation.scores)
        say(f'numbers: {output}')
    if picture and evaluation.pictures and jax.process_index() == 0:
        images.write_image(picture, report.grid(evaluation.pictures, [*model.config.eval.names, 'target']))
        say(f'picture: {picture}')
    return evaluation


@dataclasses.dataclass(frozen=True)
class Options:
    """What the verb `evaluate` may be told.

    Attributes:
      split: that is scored.
      protocols: keys of PROTOCOLS.
      y_channel: the Y channel as well.
      lpips: 'alex' or 'vgg'; None: as `eval.lpips` says.
      worst: so many images are named.
      tile: side of the tiles that trained models see of larger images; None: what is likely to fit.
      overlap: of the tiles, 'blend' or 'exact'.
    """

    split: str = 'test'
    protocols: tuple[str, ...] = tuple(PROTOCOLS)
    y_channel: bool = False
    lpips: str | None = None
    worst: int = 5
    tile: int | None = None
    overlap: str = 'blend'

    @property
    def predict(self) -> PredictOptions:
        """How trained models are applied to large images."""
        return PredictOptions(tile=self.tile, overlap=self.overlap)


def refuse_labels(models: Sequence[inference.Model | str]) -> None:
    """Raises a UserError where a model makes images from labels."""
    for model in models:
        if not isinstance(model, str) and model.job.classes:
            raise UserError(f'{model.origin} makes images from labels: there is no target for PSNR and SSIM')


def _config_of_data(
    models: Sequence[inference.Model | str], config: ml_collections.ConfigDict | None, options: Options
) -> ml_collections.ConfigDict:
    """The configuration whose sections `data`, `degrade` and `eval`, and seed, say what is scored."""
    trained = [model for model in models if not isinstance(model, str)]
    if config is None and not trained:
        raise UserError('baselines know no data: give --config=FILE, whose sections data, degrade and eval are taken')
    if config is None and trained[0].config.data.dir is None and trained[0].config.data.layout == 'auto':
        raise UserError(
            f'{trained[0].origin} names no data: give --config=FILE with --config.data.dir=DIR, whose sections data, '
            'degrade and eval are taken'
        )
    if config is not None and takes_labels(config):
        raise UserError('--config: it makes images from labels; expected one of images, such as configs/polyu.py')
    pick(dict.fromkeys(SPLITS), options.split, '--split')
    chosen = ml_collections.ConfigDict((trained[0].config if config is None else config).to_dict())
    if options.lpips:
        chosen.eval.lpips = options.lpips
    if options.y_channel and chosen.data.channels != 3:
        raise UserError(f'--y-channel needs colour images: data.channels={chosen.data.channels}')
    return chosen


def _validation(
    config: ml_collections.ConfigDict, job: Job, models: Sequence[inference.Model | str], split: str
) -> Examples | None:
    """What baselines find their strengths on; None where nothing needs it, or nothing is there."""
    tuned = [model for model in models if isinstance(model, str) and BASELINES[model].strengths]
    if not tuned or not has_split(config, 'val'):
        return None
    if split == 'val':
        print(f'note: the strengths of {", ".join(tuned)} are chosen on images that are scored')
    return Examples(job, config, find_splits(config, ['val'], say=lambda line: None)['val'])


def _note_training_images(models: Sequence[inference.Model | str], records: Sequence[Record], split: str) -> None:
    """Says which models have seen what they are scored on."""
    for model in models:
        seen = [] if isinstance(model, str) or split == 'train' else trained_on(model.origin, records)
        if seen:
            listed = shortlist(seen, 3)
            print(f'note: {len(seen)} of the {len(records)} examples have names that {model} was trained on:{listed}')


def assess(
    models: Sequence[inference.Model | str], examples: Examples, validation: Examples | None, options: Options
) -> tuple[ModelResult, ...]:
    """Scores models and baselines on the same images.

    Args:
      models: trained ones, and keys of BASELINES.
      examples: what they are scored on.
      validation: what the baselines' strengths are chosen on; None: their defaults.
      options: of the evaluation.

    Raises:
      UserError: a package or LPIPS's weights are missing, or a model does not fit the images.
    """
    score = build_score(
        [PROTOCOLS[name] for name in options.protocols],
        y_channel=options.y_channel,
        lpips=examples.job.lpips,
        frozen=examples.job.lpips.read_weights() if examples.job.lpips else None,
    )
    chosen = contenders.build(models, examples.config.data.channels, validation, options.predict)
    total = len(examples.records)
    with report.progress_bar(total, f'scoring {len(chosen)} model{"s" if len(chosen) > 1 else ""}') as bar:
        return score_models(examples, chosen, score, bar.update)


def write_results(output: Path, results: Sequence[ModelResult], examples: Examples, options: Options) -> None:
    """Writes all there is to know about an evaluation to a JSON file."""
    sections = {name: examples.config[name].to_dict() for name in ('data', 'degrade', 'eval')}
    content = {'versions': summary.versions(), 'options': dataclasses.asdict(options)}
    content |= {'sections': sections | {'seed': examples.config.seed}, **summary.to_json(results, options.worst)}
    report.write_json(output, content)
    print(f'numbers: {output}')


def evaluate_models(
    models: Sequence[inference.Model | str],
    config: ml_collections.ConfigDict | None = None,
    options: Options = Options(),
    output: Path | None = None,
    html: Path | None = None,
) -> tuple[ModelResult, ...]:
    """Scores models and baselines image by image and prints the tables: the verb `evaluate`.

    Args:
      models: trained ones, and keys of BASELINES; the others are compared with the first.
      config: whose sections `data`, `degrade` and `eval`, and seed, say what is scored; None: that of the first trained
        model.
      options: of the evaluation.
      output: a JSON file to write everything to.
      html: a page to write: tables, pictures, and the curves of the first training.

    Raises:
      UserError: something wrong with the data, or a model that does not fit them.
    """
    refuse_labels(models)
    curves = page.curves(models) if html else []
    data = _config_of_data(models, config, options)
    contenders.check(models, data.data.channels)
    job = build_job(data, steps=1)
    splits = find_splits(data, [options.split])
    records = splits[options.split]
    if config is None:
        check_stored_splits(next(model for model in models if not isinstance(model, str)).origin, splits)
    _note_training_images(models, records, options.split)
    print(f'{", ".join(map(str, models))}; {len(records)} {options.split} examples …', flush=True)
    examples = Examples(job, data, records)
    results = assess(models, examples, _validation(data, job, models, options.split), options)
    crop = data.eval.crop_size
    title = f'{options.split}: {len(records)} examples, {f"central {crop}×{crop}" if crop else "whole images"}'
    print(summary.describe(title, results, data.eval.names, options.worst))
    if output:
        write_results(output, results, examples, options)
    if html:
        page.write(html, title, results, data.eval.names, curves)
    return results
