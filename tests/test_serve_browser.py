"""The page around a model in a real browser: an installed Chromium, driven by Playwright."""

import base64
import contextlib
import threading
from pathlib import Path

import pytest

from p2p_jax import serve
from p2p_jax.data.images import decode, write_image
from tests.conftest import picture
from tests.test_html_browser import ARGUMENTS, CHROMIUM, sync_api
from tests.test_serve import HOSTILE, ask, image_maker, label_maker, upload

waitress = pytest.importorskip('waitress')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='neither chromium nor google-chrome is installed')


@contextlib.contextmanager
def opened(maker):
    """The page of a model; at the end nothing was asked for from elsewhere, and nothing has failed."""
    server = waitress.create_server(serve.build_app(maker), host='127.0.0.1', port=0)
    threading.Thread(target=server.run, daemon=True).start()
    address = f'http://127.0.0.1:{server.effective_port}/'
    faults, asked = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page()
        page.on('console', lambda message: faults.append(message.text))
        page.on('pageerror', lambda error: faults.append(str(error)))
        page.on('request', lambda sent: asked.append(sent.url))
        page.goto(address)
        yield page
        browser.close()
    server.task_dispatcher.shutdown()
    assert faults == []
    assert all(url.startswith((address, 'data:', f'blob:{address}')) for url in asked)


def download(page, place):
    with page.expect_download() as started:
        place.click()
    return started.value.suggested_filename, Path(started.value.path()).read_bytes()


def test_images_of_all_labels(tmp_path):
    maker = label_maker(tmp_path)
    with opened(maker) as page:
        page.locator('.grid img').nth(7).wait_for()
        page.locator('#label').select_option(label='(all labels)')
        page.locator('#seed').fill('7')
        page.locator('#count').fill('3')
        page.locator('#truncation').fill('0.5')
        page.get_by_role('button').click()
        page.locator('h2').nth(2).wait_for()
        assert page.locator('h2').all_inner_texts() == ['cat', 'dog', HOSTILE]
        assert page.locator('.grid img').count() == 9 and page.locator('img').count() == 9
        assert page.evaluate('[...document.images].every((image) => image.naturalWidth === 8)')
        name, content = download(page, page.locator('.grid a').nth(4))
    assert name == 'dog_7_00001.png'
    assert content == base64.b64decode(ask(maker, truncation='0.5').json['images'][1]['png'])


def test_an_upload_beside_its_result(tmp_path):
    maker = image_maker(tmp_path)
    write_image(tmp_path / 'a.b.png', picture(0))
    write_image(tmp_path / 'deep.tif', picture(1))
    (tmp_path / 'large.png').write_bytes(bytes(serve.BYTES + 1))
    with opened(maker) as page:
        page.locator('#file').set_input_files(tmp_path / 'a.b.png')
        name, content = download(page, page.locator('#download'))
        assert name == 'a.b_result.png' and content == upload(maker, (tmp_path / 'a.b.png').read_bytes()).data
        before = page.locator('.before')
        assert before.evaluate('(image) => image.style.clipPath') == 'inset(0px 50% 0px 0px)'
        page.get_by_role('slider').press('End')
        assert before.evaluate('(image) => image.style.clipPath') == 'inset(0px 0% 0px 0px)'
        page.locator('#file').set_input_files(tmp_path / 'deep.tif')
        page.get_by_text('This browser cannot show the input').wait_for()
        _, content = download(page, page.locator('#download'))
        assert decode('result', content).shape == picture(1).shape
        page.locator('#file').set_input_files(tmp_path / 'large.png')
        page.get_by_text('large.png: more than 20 MB').wait_for()
        assert page.locator('img').count() == 0
