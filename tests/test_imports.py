"""The rooms of the package: who may import whom, and what must stay out of where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each may import those above it. A package's own name stands for its __init__.
ORDER = [
    'p2p_jax',
    'p2p_jax.startup',
    'p2p_jax.lookup',
    'p2p_jax.configfile',
    'p2p_jax.files',
    'p2p_jax.lock',
    'p2p_jax.stop',
    'p2p_jax.unpickle',
    'p2p_jax.statedict',
    'p2p_jax.data.metadata',
    'p2p_jax.data.images',
    'p2p_jax.data.sources',
    'p2p_jax.data.records',
    'p2p_jax.data.layouts',
    'p2p_jax.data.labelled',
    'p2p_jax.data.sample',
    'p2p_jax.data.prepared',
    'p2p_jax.data.resemblance',
    'p2p_jax.data.audit',
    'p2p_jax.data.basics',
    'p2p_jax.data.blur',
    'p2p_jax.data.jpeg',
    'p2p_jax.data.camera',
    'p2p_jax.data.degrade',
    'p2p_jax.data.builders',
    'p2p_jax.data.order',
    'p2p_jax.data.pipeline',
    'p2p_jax.data',
    'p2p_jax.models.convolutions',
    'p2p_jax.models.layers',
    'p2p_jax.models.unet',
    'p2p_jax.models.classical_unet',
    'p2p_jax.models.nafnet',
    'p2p_jax.models.resnet',
    'p2p_jax.models.resnet_unet',
    'p2p_jax.models.patchgan',
    'p2p_jax.models.multiscale',
    'p2p_jax.models.conditional',
    'p2p_jax.models.vgg',
    'p2p_jax.models.inception',
    'p2p_jax.models.classifier',
    'p2p_jax.models',
    'p2p_jax.augment',
    'p2p_jax.metrics',
    'p2p_jax.intervals',
    'p2p_jax.neighbours',
    'p2p_jax.baselines',
    'p2p_jax.losses',
    'p2p_jax.pretrained',
    'p2p_jax.perceptual',
    'p2p_jax.features',
    'p2p_jax.fidelity',
    'p2p_jax.optim',
    'p2p_jax.state',
    'p2p_jax.faults',
    'p2p_jax.settings',
    'p2p_jax.job',
    'p2p_jax.steps',
    'p2p_jax.integrity',
    'p2p_jax.checkpoint',
    'p2p_jax.modelfile',
    'p2p_jax.classifier',
    'p2p_jax.torch_weights',
    'p2p_jax.report',
    'p2p_jax.provenance',
    'p2p_jax.html',
    'p2p_jax.datasets',
    'p2p_jax.tiling',
    'p2p_jax.inference',
    'p2p_jax.generate',
    'p2p_jax.export',
    'p2p_jax.predictor',
    'p2p_jax.predict',
    'p2p_jax.serve',
    'p2p_jax.scoring',
    'p2p_jax.contenders',
    'p2p_jax.summary',
    'p2p_jax.page',
    'p2p_jax.evaluate',
    'p2p_jax.sample_scores',
    'p2p_jax.evaluate_labels',
    'p2p_jax.sidd',
    'p2p_jax.finetune',
    'p2p_jax.diagnosis',
    'p2p_jax.writers',
    'p2p_jax.watch',
    'p2p_jax.distributed',
    'p2p_jax.loop',
    'p2p_jax.train',
    'p2p_jax.main',
]
# Room: what none of its modules may import.
FORBIDDEN = {
    'p2p_jax.lookup': {'jax', 'flax', 'numpy', 'tensorflow', 'ml_collections'},
    'p2p_jax.data': {'flax', 'tensorflow', 'ml_collections', 'absl'},
    'p2p_jax.models': {'tensorflow', 'ml_collections', 'absl'},
    'p2p_jax.steps': {'tensorflow', 'absl', 'orbax', 'pathlib'},
    'configs': {'p2p_jax', 'jax', 'flax', 'tensorflow', 'numpy'},
}


def modules(package: str) -> dict[str, Path]:
    return {
        '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
        for path in (ROOT / package).rglob('*.py')
    }


def imported(path: Path) -> set[str]:
    """All modules that a file imports, also inside functions; `from package import module` counts as the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            for alias in node.names:
                full = f'{node.module}.{alias.name}'
                names.add(full if full in ORDER else str(node.module))
    return names


def test_every_module_has_a_place_in_the_order():
    assert set(modules('p2p_jax')) == set(ORDER)


@pytest.mark.parametrize('module', ORDER)
def test_no_arrow_points_up(module):
    inside = {name for name in imported(modules('p2p_jax')[module]) if name.split('.')[0] == 'p2p_jax'}
    above = set(ORDER[: ORDER.index(module)])
    assert inside <= above, f'{module} imports {sorted(inside - above)}, which are not above it'


@pytest.mark.parametrize('room', FORBIDDEN)
def test_rooms_keep_libraries_out(room):
    everything = modules('p2p_jax') | modules('configs')
    members = [path for name, path in everything.items() if name == room or name.startswith(f'{room}.')]
    assert members
    for path in members:
        tops = {name.split('.')[0] for name in imported(path)}
        assert not tops & FORBIDDEN[room], path


def test_help_is_quick_and_light():
    code = (
        'import sys; from p2p_jax import main; code = main.main(["p2p_jax", "--help"]);'
        'heavy = {"jax", "flax", "tensorflow", "orbax"} & set(sys.modules); assert not heavy, heavy; sys.exit(code)'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for verb in (
        'train',
        'audit',
        'prepare',
        'evaluate',
        'predict',
        'generate',
        'serve',
        'export',
        'import_torch',
        'replay',
    ):
        assert f'\n  {verb} ' in done.stdout


def test_evaluation_prediction_and_export_do_without_tensorflow():
    heavy = {'tensorflow', 'jax2onnx', 'onnx', 'onnxruntime'}
    modules = 'p2p_jax.evaluate, p2p_jax.predict, p2p_jax.export'
    code = f'import sys; import {modules}; assert not {heavy} & set(sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
