import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from p2p_jax import startup

ROOT = Path(__file__).parents[1]
SHOWN = 'import os; from p2p_jax import startup; startup.use_huge_pages(); print(os.environ["GLIBC_TUNABLES"])'


def test_compiled_programs_are_kept_below_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.delenv('JAX_COMPILATION_CACHE_MAX_SIZE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    startup.keep_compiled()
    folder = Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
    assert folder.is_dir() and folder.is_relative_to(tmp_path / 'p2p_jax')
    assert 0 < int(os.environ['JAX_COMPILATION_CACHE_MAX_SIZE']) <= 10 * 2**30
    assert startup.cache_folder() == folder  # the next time as well


def test_what_the_environment_says_takes_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_MAX_SIZE', raising=False)
    startup.keep_compiled()
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path)
    assert 'JAX_COMPILATION_CACHE_MAX_SIZE' not in os.environ


def test_without_a_folder_that_can_be_written_nothing_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    startup.keep_compiled()
    assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def test_a_bounded_cache_works_is_safe_to_delete_and_survives_damage(tmp_path):
    """In processes of their own: twice as it comes, once damaged, once deleted."""
    program = 'import jax; print(jax.jit(lambda x: jax.numpy.sin(x) * 2)(1.0))'
    environment = os.environ | {
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'kept'),
        'JAX_COMPILATION_CACHE_MAX_SIZE': str(2**20),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }

    def run():
        done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    first = run()
    kept = [path for path in (tmp_path / 'kept').iterdir() if path.name.endswith('-cache')]
    assert kept and run() == first
    for path in kept:
        path.write_bytes(path.read_bytes()[:-7])
    assert run() == first
    for path in (tmp_path / 'kept').iterdir():
        path.unlink()
    assert run() == first


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere memory is not got from glibc')
def test_huge_pages_are_asked_for_once_and_only_where_nothing_was():
    environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
    command = [sys.executable, '-c', SHOWN]
    shown = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == 'glibc.malloc.hugetlb=1\n'
    environment['GLIBC_TUNABLES'] = 'glibc.malloc.check=0'
    shown = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == 'glibc.malloc.check=0\n'


def test_nothing_is_imported_for_it():
    program = 'import sys; from p2p_jax import startup; print("jax" in sys.modules, "numpy" in sys.modules)'
    shown = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == 'False False\n'
    assert jax.config.jax_compilation_cache_dir  # the tests have their own
