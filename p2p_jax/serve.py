"""A page around one model: images that it makes of labels, or of an image that is uploaded.

Programs may ask as the page does: GET /images?label=cat&seed=0&count=4, POST /result with an image file as the body,
GET /health. Nothing that is uploaded or made is written to disk.
"""

import base64
import contextlib
import functools
import importlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p2p_jax import html
from p2p_jax.data import images
from p2p_jax.data.metadata import Metadata
from p2p_jax.generate import BATCH, build_sampler
from p2p_jax.inference import Model
from p2p_jax.lookup import UserError, pick
from p2p_jax.predict import encode_result
from p2p_jax.predictor import PredictOptions, Predictor
from p2p_jax.stop import Stop

MOST = BATCH  # images of a request
BYTES = 20_000_000  # of an upload
PIXELS = 12_000_000  # of an upload
WAITING = 3  # requests that may wait for the one that is computed
_SEEDS = 2**31 - 1
_TRUNCATIONS = 0.01, 10.0
_PATIENCE = 10  # seconds after which one that was turned away may ask again
_TEMPLATE = Path(__file__).with_name('serve.html')
_UPLOAD = 'the upload'
# How files begin that may go to the decoders: Pillow knows formats that are programs, such as PostScript.
_FORMATS = re.compile(rb'\x89PNG\r\n\x1a\n|\xff\xd8\xff|BM|II[*+]\0|MM\0[*+]|RIFF....WEBP', re.DOTALL)
_HEADERS = {
    'Cache-Control': 'no-store',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"the package {name} is missing ({error}): pip install -c constraints.txt -e '.[serve]'"
        ) from None


def _whole(given: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = given.get(name, '')
    if not re.fullmatch('[0-9]{1,10}', text) or not low <= int(text) <= high:
        raise UserError(f'{name}={text[:20]!r}: expected a whole number from {low} to {high}')
    return int(text)


def _truncation(given: Mapping[str, str]) -> float | None:
    text, (low, high) = given.get('truncation', ''), _TRUNCATIONS
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if low <= float(text) <= high:
            return float(text)
    raise UserError(f'truncation={text[:20]!r}: expected a number from {low} to {high}, or nothing')


class Sampler:
    """Images of labels, as `generate` makes them."""

    def __init__(self, model: Model) -> None:
        """Compiles nothing yet."""
        self.model = model
        self._sample = build_sampler(model.job, BATCH)
        self._labels = {name: number for number, name in enumerate(model.job.classes)}

    def images(self, given: Mapping[str, str]) -> list[bytes]:
        """Returns PNG files, those of the numbers from 0 on.

        Args:
          given: 'label', 'seed', 'count' and perhaps 'truncation', as texts.

        Raises:
          UserError: one of them is not what it should be.
        """
        for name in given:
            pick(dict.fromkeys(('label', 'seed', 'count', 'truncation')), name, 'parameter')
        label, seed = pick(self._labels, given.get('label', ''), 'label'), _whole(given, 'seed', 0, _SEEDS)
        count, truncation = _whole(given, 'count', 1, MOST), _truncation(given)
        made = self._sample(self.model.variables, label, range(count), seed, truncation)
        return [images.encode(np.rint(image * 255).astype(np.uint8), '.png', Metadata()) for image in made]

    def warm_up(self) -> None:
        """Compiles what the requests need."""
        for truncation in ('', '1'):
            self.images({'label': self.model.job.classes[0], 'seed': '0', 'count': '1', 'truncation': truncation})


class Restorer:
    """Results of uploaded images, as `predict` makes them."""

    def __init__(self, model: Model, options: PredictOptions) -> None:
        """Compiles nothing yet; raises a UserError for options that do not go with the model."""
        self.model = model
        self._predict = Predictor(model, options)

    def result(self, content: bytes) -> bytes:
        """Returns the PNG file of a result: of the upload's depth and channels, upright, with its profile and EXIF.

        Args:
          content: of an image file.

        Raises:
          UserError: no image that can be read, or one that is too large.
        """
        if not _FORMATS.match(content):
            raise UserError(f'{_UPLOAD}: no PNG, JPEG, TIFF, WebP or BMP file')
        found = images.header(_UPLOAD, content)
        if found.height * found.width > PIXELS:
            raise UserError(f'{_UPLOAD}: {found} is more than {PIXELS / 1e6:g} megapixels; see the verb predict')
        pixels, kept = images.decode(_UPLOAD, content), images.read_metadata(_UPLOAD, content)
        return encode_result(self._predict(pixels), '.png', kept)

    def warm_up(self) -> None:
        """Compiles what images larger than a tile need; each smaller size is compiled when it comes."""
        side = self._predict.tiling.tile()
        self._predict(np.zeros((side, side + 1, self.model.config.data.channels), np.uint8))


def build_maker(model: Model, options: PredictOptions) -> Sampler | Restorer:
    """Returns what the page is around.

    Args:
      model: of either kind.
      options: how a model of images is applied.

    Raises:
      UserError: options that do not go with the model.
    """
    if not model.job.classes:
        return Restorer(model, options)
    if options != PredictOptions():
        raise UserError(f'{model.origin} makes images from labels; --resize and the like are for images from images')
    return Sampler(model)


def _turns(refusal: Callable[[], Exception]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns a context that lets one request in, a few wait, and turns the others away with the exception."""
    places, lock = threading.Semaphore(1 + WAITING), threading.Lock()

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        if not places.acquire(blocking=False):
            raise refusal()
        try:
            with lock:
                yield
        finally:
            places.release()

    return turn


def build_app(maker: Sampler | Restorer) -> Any:
    """Returns the Flask application.

    Args:
      maker: of the images.

    Raises:
      UserError: Flask is not installed.
    """
    flask, errors = _package('flask'), _package('werkzeug.exceptions')
    busy = f'busy: {1 + WAITING} requests are being worked on; ask again in {_PATIENCE} s'
    turn = _turns(functools.partial(errors.ServiceUnavailable, busy, retry_after=_PATIENCE))
    model, template = maker.model, _TEMPLATE.read_text(encoding='utf-8')
    facts = {'model': model.origin.name, 'step': model.step, 'classes': list(model.job.classes)}
    limits = {'most': MOST, 'bytes': BYTES, 'pixels': PIXELS, 'seeds': _SEEDS, 'truncations': _TRUNCATIONS}
    page = html.fill(template, f'{model.origin.name} - p2p_jax', {**facts, **limits})
    policy = html.policy(template, 'img-src data: blob:', "connect-src 'self'", "frame-ancestors 'none'")
    app = flask.Flask(__name__, static_folder=None)
    app.config['MAX_CONTENT_LENGTH'] = BYTES

    app.get('/', endpoint='page')(lambda: page)
    app.get('/health', endpoint='health')(lambda: facts)

    if isinstance(maker, Sampler):

        @app.get('/images')
        def sampled() -> Any:
            given = flask.request.args
            with turn():
                made = maker.images(given)
            named = ((f'{given["label"]}_{given["seed"]}_{i:05}.png', file) for i, file in enumerate(made))
            return {'images': [{'name': name, 'png': base64.b64encode(file).decode()} for name, file in named]}

    else:

        @app.post('/result')
        def restored() -> Any:
            content = flask.request.get_data(cache=False)
            with turn():
                return flask.Response(maker.result(content), mimetype='image/png')

    @app.errorhandler(UserError)
    def refused(error: UserError) -> Any:
        return flask.Response(f'{error}\n', 400, mimetype='text/plain')

    @app.errorhandler(errors.HTTPException)
    def failed(error: Any) -> Any:
        said = f'{_UPLOAD}: more than {BYTES / 1e6:g} MB' if error.code == 413 else error.description
        response = flask.Response(f'{said}\n', error.code, mimetype='text/plain')
        if error.code == 503:
            response.headers['Retry-After'] = str(_PATIENCE)
        return response

    @app.after_request
    def secured(response: Any) -> Any:
        response.headers.update({**_HEADERS, 'Content-Security-Policy': policy})
        return response

    return app


def serve(model: Model, options: PredictOptions, host: str, port: int) -> None:
    """Serves the page until a signal ends it.

    Args:
      model: that makes the images.
      options: how a model of images is applied.
      host: the address that it listens on; 127.0.0.1 is this machine alone, 0.0.0.0 is every network.
      port: likewise.

    Raises:
      UserError: a package is missing, the address is taken, or the options do not go with the model.
      Stopped: by a signal.
    """
    waitress, maker = _package('waitress'), build_maker(model, options)
    kept = 4 * BYTES  # bytes up to which a request and its answer stay in memory; what is more would go to the disk
    try:
        server = waitress.create_server(
            build_app(maker),
            host=host,
            port=port,
            threads=1 + WAITING + 4,  # so that some are left for the page and for turning away
            connection_limit=32,
            max_request_body_size=BYTES + 1,
            inbuf_overflow=kept,
            outbuf_overflow=kept,
        )
    except (OSError, ValueError) as error:
        raise UserError(f'--host={host} --port={port}: cannot listen there ({error})') from None
    with Stop() as stop:
        print(f'{model}; compiling', flush=True)
        maker.warm_up()
        print(f'serving on http://{host}:{port}', flush=True)
        server.run()  # a signal's exception ends it and goes no further
        stop.check()
