"""The page around a model: the images of the command line, what is refused and how, and what a browser is told."""

import base64
import contextlib
import io
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request

import jax
import numpy as np
import pytest
from PIL import Image, ImageCms

from p2p_jax import html, serve
from p2p_jax.data import images
from p2p_jax.data.metadata import Metadata
from p2p_jax.generate import BATCH, generate
from p2p_jax.inference import Model
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from p2p_jax.predict import predict
from p2p_jax.predictor import PredictOptions
from p2p_jax.stop import Stopped
from tests.conftest import picture, small_config
from tests.test_html import Page

pytest.importorskip('flask')
HOSTILE = '</script><img src=x onerror=alert(1)>'


def untrained(folder, **changes):
    config = small_config()
    config.update_from_flattened_dict(changes)
    job = build_job(config, 1)
    size = config.data.crop_size
    state = jax.jit(lambda: job.create_state(0, (size, size, 3)))()
    return Model(config, job, state.evaluated, 5, folder / 'some model', 1.0)


def client(maker):
    return serve.build_app(maker).test_client()


def label_maker(folder):
    """Of three labels, one of which has an ugly name."""
    model = untrained(
        folder,
        **{'generator.name': 'dcgan', 'discriminator.name': 'dcgan', 'loss.l1.weight': 0.0, 'data.crop_size': 8},
        **{'generator.dcgan.width': 8, 'generator.dcgan.norm': 'none', 'generator.dcgan.init_std': 0.2},
        **{'data.classes': ('cat', 'dog', HOSTILE)},
    )
    return serve.build_maker(model, PredictOptions())


def image_maker(folder, **options):
    changes = {'generator.unet.depth': 1, 'generator.unet.width': 4, 'generator.unet.norm': 'none'}
    return serve.build_maker(untrained(folder, **changes), PredictOptions(**options))


@pytest.fixture(scope='module')
def sampler(tmp_path_factory):
    return label_maker(tmp_path_factory.mktemp('labels'))


@pytest.fixture(scope='module')
def restorer(tmp_path_factory):
    return image_maker(tmp_path_factory.mktemp('images'))


def ask(maker, **changes):
    asked = {'label': 'dog', 'seed': '7', 'count': '3'} | changes
    return client(maker).get(
        '/images', query_string={name: value for name, value in asked.items() if value is not None}
    )


def upload(maker, content):
    return client(maker).post('/result', data=content)


@pytest.mark.parametrize('truncation', [None, 0.5])
def test_images_are_those_of_generate(sampler, tmp_path, truncation):
    generate(sampler.model, ['dog'], tmp_path, count=3, seed=7, batch_size=BATCH, truncation=truncation)
    made = ask(sampler, truncation=truncation and str(truncation)).json['images']
    assert [image['name'] for image in made] == [f'dog_7_0000{i}.png' for i in range(3)]
    for i, image in enumerate(made):
        assert base64.b64decode(image['png']) == (tmp_path / 'dog' / f'7_0000{i}.png').read_bytes()


def test_a_result_is_the_file_that_predict_writes(restorer, tmp_path):
    exif, icc = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    exif[0x0112], exif[271] = 6, 'Maker'
    Image.fromarray(picture(0, 24, 32)).save(tmp_path / 'turned.jpg', exif=exif, icc_profile=icc)
    deep = np.random.default_rng(0).integers(0, 2**16, (32, 24, 4)).astype(np.uint16)
    (tmp_path / 'deep.tif').write_bytes(images.encode(deep, '.tif', Metadata()))
    assert predict(restorer.model, tmp_path, tmp_path / 'out', PredictOptions()) == 0
    for name in ('turned.jpg', 'deep.tif'):
        answer = upload(restorer, (tmp_path / name).read_bytes())
        assert (answer.status_code, answer.mimetype) == (200, 'image/png')
        assert answer.data == (tmp_path / 'out' / name).with_suffix('.png').read_bytes()
    assert images.decode('deep', answer.data).dtype == np.uint16


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'label': 'cow'}, "label='cow' is unknown. Available: .*cat, dog"),
        ({'label': None}, "label='' is unknown"),
        ({'seed': '-1'}, "seed='-1': expected a whole number from 0 to 2147483647"),
        ({'seed': '2147483648'}, 'expected a whole number'),
        ({'seed': '1.5'}, 'expected a whole number'),
        ({'seed': None}, "seed='': expected"),
        ({'count': '0'}, "count='0': expected a whole number from 1 to 64"),
        ({'count': '65'}, "count='65': expected"),
        ({'count': '٣'}, 'expected a whole number'),
        ({'truncation': '0'}, "truncation='0': expected a number from 0.01 to 10.0, or nothing"),
        ({'truncation': 'nan'}, "truncation='nan': expected"),
        ({'truncation': 'x'}, "truncation='x': expected"),
        ({'colour': 'red'}, "parameter='colour' is unknown. Available: count, label, seed, truncation"),
    ],
)
def test_a_bad_parameter_is_told_in_one_line(sampler, changes, message):
    answer = ask(sampler, **changes)
    assert (answer.status_code, answer.mimetype) == (400, 'text/plain')
    assert re.search(message, answer.text) and answer.text.count('\n') == 1


def png(height, width):
    stream = io.BytesIO()
    Image.new('L', (width, height)).save(stream, 'PNG')
    return stream.getvalue()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'the upload: no PNG, JPEG, TIFF, WebP or BMP file'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'the upload: no PNG'),
        (b'GIF89a' + bytes(50), 'the upload: no PNG'),
        (b'\x89PNG\r\n\x1a\n' + bytes(50), 'the upload: not a readable image'),
        (png(32, 32)[:-30], 'the upload: truncated or damaged'),
        (png(3001, 4000), 'the upload: 3001×4000 grey 8 bit is more than 12 megapixels'),
    ],
)
def test_a_bad_file_is_told_in_one_line(restorer, content, message):
    answer = upload(restorer, content)
    assert (answer.status_code, answer.mimetype) == (400, 'text/plain')
    assert answer.text.startswith(message) and answer.text.count('\n') == 1


def test_too_many_bytes_are_refused_before_they_are_read(restorer, monkeypatch):
    monkeypatch.setattr(serve, 'BYTES', 1000)
    assert upload(restorer, png(8, 8) + bytes(1000 - len(png(8, 8)))).status_code == 200
    answer = upload(restorer, png(8, 8) + bytes(1001 - len(png(8, 8))))
    assert (answer.status_code, answer.text) == (413, 'the upload: more than 0.001 MB\n')


def test_nothing_else_is_served(sampler, restorer):
    assert client(sampler).post('/result', data=png(8, 8)).status_code == 404
    assert client(restorer).get('/images').status_code == 404
    assert client(restorer).get('/result').status_code == 405
    assert client(restorer).get('/static/../serve.py').status_code == 404


def test_names_do_not_become_markup(sampler):
    page = Page(client(sampler).get('/').text)
    assert page.content['classes'] == ['cat', 'dog', HOSTILE]
    assert not any(tag == 'img' for tag, _ in page.tags) and len(page.texts['script']) == 2
    assert client(sampler).get('/health').json == {
        'model': 'some model',
        'step': 5,
        'classes': ['cat', 'dog', HOSTILE],
    }
    answer = ask(sampler, label=HOSTILE[::-1])
    assert answer.mimetype == 'text/plain' and answer.headers['X-Content-Type-Options'] == 'nosniff'


def test_every_answer_says_what_a_browser_may_do_with_it(sampler):
    page = client(sampler).get('/')
    texts = Page(page.text).texts
    for answer in (
        page,
        client(sampler).get('/health'),
        ask(sampler),
        ask(sampler, seed=None),
        client(sampler).get('/x'),
    ):
        rules = dict(rule.split(maxsplit=1) for rule in answer.headers['Content-Security-Policy'].split('; '))
        assert {rules[name] for name in ('default-src', 'form-action', 'base-uri', 'frame-ancestors')} == {"'none'"}
        assert rules['connect-src'] == "'self'" and rules['img-src'] == 'data: blob:'
        assert answer.headers['Cache-Control'] == 'no-store'
        assert answer.headers['X-Content-Type-Options'] == 'nosniff'
        for name, text in (('script', texts['script'][1]), ('style', texts['style'][0])):
            assert rules[f'{name}-src'] in html.policy(f'<{name}>{text}</{name}>')
            assert "'unsafe" not in rules[f'{name}-src']


def test_one_computes_few_wait_and_the_rest_are_turned_away(sampler, monkeypatch):
    inside, most, go = [0], [0], threading.Event()

    def slow(given):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        assert go.wait(10)
        inside[0] -= 1
        return []

    monkeypatch.setattr(sampler, 'images', slow)
    app = serve.build_app(sampler)
    answers = []

    def one():
        answers.append(app.test_client().get('/images?label=dog&seed=0&count=1'))

    threads = [threading.Thread(target=one) for _ in range(serve.WAITING + 4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while len(answers) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert app.test_client().get('/health').status_code == 200
    go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [503] * 3 + [200] * (1 + serve.WAITING) and most == [1]
    assert answers[0].headers['Retry-After'] == '10' and answers[0].text.startswith('busy: 4 requests')


def test_a_request_that_fails_leaves_its_place(sampler):
    app = serve.build_app(sampler)
    for _ in range(serve.WAITING + 3):
        assert app.test_client().get('/images?label=no').status_code == 400
    assert app.test_client().get('/images?label=dog&seed=0&count=1').status_code == 200


def test_after_the_warm_up_requests_compile_nothing(tmp_path, caplog):
    sampler, restorer = label_maker(tmp_path), image_maker(tmp_path, tile=16)
    large = images.encode(picture(0, 40, 50), '.png', Metadata())
    for maker in (sampler, restorer):
        maker.warm_up()
    with jax.log_compiles():
        assert ask(sampler).status_code == ask(sampler, truncation='2', count='20').status_code == 200
        assert upload(restorer, large).status_code == 200
        assert not [line for line in caplog.messages if line.startswith('Compiling')]
        upload(restorer, png(9, 9))
        assert [line for line in caplog.messages if line.startswith('Compiling')]


def test_options_are_checked_before_anything_is_served(sampler, restorer):
    with pytest.raises(UserError, match='makes images from labels; --resize and the like'):
        serve.build_maker(sampler.model, PredictOptions(resize=True))
    with pytest.raises(UserError, match="--resize: .* was trained at the photographs' own scale"):
        serve.build_maker(restorer.model, PredictOptions(resize=True))


@pytest.mark.parametrize('package', ['flask', 'waitress'])
def test_what_is_not_installed_is_told(sampler, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"the package {package} is missing .*-c constraints.txt -e '.\[serve\]'"):
        serve.serve(sampler.model, PredictOptions(), '127.0.0.1', 1)


def test_an_address_that_is_taken_is_told(sampler, capsys):
    pytest.importorskip('waitress')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'--host=127.0.0.1 --port={port}: cannot listen there'):
            serve.serve(sampler.model, PredictOptions(), '127.0.0.1', port)
    assert not capsys.readouterr().out, 'it is said before anything is compiled'


def test_it_answers_until_a_signal_ends_it(sampler, capsys):
    pytest.importorskip('waitress')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    found = []

    def visit():
        until = time.monotonic() + 20
        while not found and time.monotonic() < until:
            with contextlib.suppress(OSError):  # it does not listen yet
                found.append(urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=20).status)
        os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    with pytest.raises(Stopped, match='stopped by SIGTERM'):
        serve.serve(sampler.model, PredictOptions(), '127.0.0.1', port)
    visitor.join()
    assert found == [200] and capsys.readouterr().out.splitlines()[-1] == f'serving on http://127.0.0.1:{port}'
