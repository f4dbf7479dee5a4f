"""Whole files, and what a storage refuses."""

import errno
import os

import pytest

from p2p_jax.files import naming, remove_leftovers, storage_errors, write_file
from p2p_jax.lookup import UserError


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / 'new' / 'a.json'
    write_file(path, b'old')
    seen = []

    def killed(status):
        seen.append((status.st_size, path.read_bytes()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, b'newer', killed)
    assert seen == [(5, b'old')]
    assert path.read_bytes() == b'old'
    assert [p.name for p in path.parent.iterdir()] == ['a.json']
    (path.parent / '.a.json.77.tmp').touch()
    remove_leftovers(path.parent)
    assert [p.name for p in path.parent.iterdir()] == ['a.json']


@pytest.mark.parametrize(
    ('number', 'said'),
    [
        (errno.ENOSPC, 'No space left on device; make room'),
        (errno.EROFS, 'Read-only file system; give a folder that can be written to'),
        (errno.EACCES, 'Permission denied; give a folder that can be written to'),
    ],
)
def test_what_a_storage_refuses_names_path_and_reason(tmp_path, monkeypatch, number, said):
    path = tmp_path / 'größe 1' / 'a.json'

    def refused(self, content):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr('pathlib.Path.write_bytes', refused)
    with pytest.raises(UserError) as caught, storage_errors('elsewhere'):
        write_file(path, b'x')
    assert str(caught.value) == f'{path}: {said}'


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(UserError, match=r'/a.*: .*; a file lies where a folder should be'), storage_errors('x'):
        write_file(tmp_path / 'a' / 'b.png', b'x')


def test_what_a_thread_met_is_told_as_well(tmp_path):
    with pytest.raises(UserError, match=f'^{tmp_path}/a: No space left'), storage_errors('x'):
        try:
            with naming(tmp_path / 'a'):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError('later') from error


def test_the_first_error_is_told_and_not_what_follows_from_it():
    with pytest.raises(UserError, match='^the first$'), storage_errors('x'):
        try:
            raise UserError('the first')
        finally:
            raise OSError(errno.ENOSPC, 'on closing')


def test_other_errors_pass():
    with pytest.raises(FileNotFoundError), storage_errors('x'):
        raise FileNotFoundError(errno.ENOENT, 'gone')
