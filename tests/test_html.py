"""The page without a browser; test_html_browser.py opens it in one."""

import base64
import dataclasses
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from p2p_jax import html
from p2p_jax.lookup import UserError
from tests.conftest import noisy, picture

HOSTILE = '</script><script>document.title = "taken"</script><!--<img src=x onerror=alert(1)>&amp;"\'\udcff.png'


class Page(HTMLParser):
    """Collects tags, their attributes and the text inside scripts, styles and the title."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {'script': [], 'style': [], 'title': []}
        self.inside = ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag in self.texts:
            self.texts[tag].append('')

    def handle_endtag(self, tag):
        self.inside = ''

    def handle_data(self, data):
        if self.inside in self.texts:
            self.texts[self.inside][-1] += data

    @property
    def content(self):
        return json.loads(self.texts['script'][0])


def example(number: int, name: str | None = None, **changes) -> html.Example:
    clean = picture(number)
    dirty, better = noisy(clean, number), (noisy(clean, number).astype(int) + clean) // 2
    scores = {'input': {'psnr': 20.0 + number % 3, 'ssim': 0.5}, 'output': {'psnr': 25.0 + number, 'ssim': 0.7}}
    whole = html.Example(
        name or f'{number}.png',
        {'camera': f'camera {number % 2}'},
        scores,
        html.encode(dirty, better.astype(np.uint8), clean),
    )
    return dataclasses.replace(whole, **changes)


def summary(**changes) -> html.Summary:
    rows = {'noisy': {'psnr': html.Interval(20.0, 19.5, 20.5)}, 'denoised': {'psnr': html.Interval(26.0, 25.0, 27.0)}}
    whole = html.Summary(
        'scores', rows, {'camera': {'camera 0': rows}}, ('noisy', 'denoised'), 'float\nclamped', ['a note']
    )
    return dataclasses.replace(whole, **changes)


def opened(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(',')[2]))))


def test_what_goes_in_stands_in_the_block_of_json():
    examples = [example(0), example(1, pictures=None)]
    curves = [html.Curve('losses', 'loss/l1', [1, 2, 3], [0.5, float('nan'), 0.25])]
    content = Page(html.render('PolyU', summary(), examples, curves, budget_mb=9)).content
    assert content['title'] == 'PolyU'
    assert content['names'] == ['noisy', 'denoised']
    assert content['rows'] == {'noisy': {'psnr': [20.0, 19.5, 20.5]}, 'denoised': {'psnr': [26.0, 25.0, 27.0]}}
    assert content['breakdowns'] == {'camera': {'camera 0': content['rows']}}
    assert (content['protocol'], content['notes']) == ('float\nclamped', ['a note'])
    assert content['curves'] == [{'plot': 'losses', 'name': 'loss/l1', 'steps': [1, 2, 3], 'values': [0.5, None, 0.25]}]
    assert list(content['metrics']) == ['psnr', 'ssim']
    first, second = content['examples']
    assert first['scores'] == examples[0].scores
    assert (first['name'], first['attributes']) == ('0.png', {'camera': 'camera 0'})
    assert second['pictures'] is None
    shown = first['pictures']
    assert {name: opened(view).shape for name, view in shown['views'].items()} == dict.fromkeys(
        ('input', 'output', 'target', 'error'), picture(0).shape
    )
    left, top = shown['corner']
    height, width = (min(html.PATCH, side) for side in picture(0).shape[:2])
    assert shown['patch'] == [width, height]
    np.testing.assert_array_equal(
        opened(shown['patches']['target']), picture(0)[top : top + height, left : left + width]
    )


def test_names_stay_text():
    hostile = example(0, HOSTILE, attributes={HOSTILE: HOSTILE})
    page = html.render(
        HOSTILE,
        summary(notes=[HOSTILE], names=(HOSTILE, 'b')),
        [hostile],
        [html.Curve(HOSTILE, HOSTILE, [1], [1.0])],
        budget_mb=9,
    )
    plain = Page(html.render('t', summary(), [example(0)], [], budget_mb=9))
    parsed = Page(page)
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in plain.tags]
    assert parsed.content['examples'][0]['name'] == HOSTILE
    assert parsed.content['examples'][0]['attributes'] == {HOSTILE: HOSTILE}
    assert parsed.content['title'] == HOSTILE
    assert parsed.texts['title'] == [HOSTILE.replace('\udcff', '\ufffd')]
    assert page.encode()  # an undecodable file name does not keep the page from being written


def test_the_page_asks_for_nothing_and_has_no_inline_handlers():
    parsed = Page(html.render('t', summary(), [example(0)], [], budget_mb=9))
    for tag, attributes in parsed.tags:
        assert not {'src', 'href', 'style', 'action'} & set(attributes), tag
        assert not [name for name in attributes if name.startswith('on')], tag
    policy = next(attributes['content'] for _, attributes in parsed.tags if 'http-equiv' in attributes)
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert 'unsafe' not in policy
    script = parsed.texts['script'][1]
    for word in ('innerHTML', 'eval(', 'fetch(', 'XMLHttpRequest', 'import(', '?.', '??', 'document.write'):
        assert word not in script, word


def test_the_same_input_gives_the_same_page():
    pages = {html.render('t', summary(), [example(i) for i in range(3)], [], budget_mb=9) for _ in range(2)}
    assert len(pages) == 1


def test_the_budget_bounds_the_page_and_keeps_the_worst_and_the_best():
    examples = [example(i) for i in range(20)]
    whole = len(html.render('t', summary(), examples, [], budget_mb=9).encode())
    bare = len(html.render('t', summary(), examples, [], budget_mb=0).encode())
    each = (whole - bare) / 20
    for budget in (whole, bare + 10 * each, bare + 3.5 * each, bare + each / 2, bare, 0):
        page = html.render('t', summary(), examples, [], budget_mb=budget / 1e6)
        shown = [i for i, e in enumerate(Page(page).content['examples']) if e['pictures']]
        assert len(page.encode()) <= max(budget, bare)
        assert abs(len(shown) - max(0, (budget - bare) / each)) <= 1.5
        if len(shown) >= 3:
            assert {0, 19} <= set(shown)
    with pytest.raises(UserError, match='budget_mb=-1'):
        html.render('t', summary(), examples, [], budget_mb=-1)


def test_an_unknown_score_is_not_dropped():
    with pytest.raises(ValueError, match=r"\['sharpness'\]"):
        html.render('t', summary(), [example(0, scores={'output': {'psnr': 1.0, 'sharpness': 2.0}})], [], budget_mb=9)


def test_spread_takes_both_ends_and_even_steps_between():
    assert html.spread(range(10, 20), 10) == list(range(10, 20))
    assert html.spread(range(100), 6) == [0, 1, 26, 74, 98, 99]
    assert html.spread(range(5), 0) == []
    for count in range(31):
        picked = html.spread(range(30), count)
        assert len(set(picked)) == count
        assert picked == sorted(picked)


@pytest.mark.parametrize('shape', [(40, 60, 3), (9, 70, 1), (30, 8, 3), (5, 6, 1)])
def test_worst_patch_is_that_of_brute_force(shape):
    random = np.random.default_rng(0)
    output, target = (random.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
    left, top, width, height = html.worst_patch(output, target, 10)
    assert (width, height) == (min(10, shape[1]), min(10, shape[0]))
    error = (output.astype(float) - target) ** 2
    sums = {
        (x, y): error[y : y + height, x : x + width].sum()
        for y in range(shape[0] - height + 1)
        for x in range(shape[1] - width + 1)
    }
    assert (left, top) == max(sums, key=sums.__getitem__)


def test_error_colours_grow_brighter_from_black_to_white():
    colours = html.error_colours(np.linspace(0, 20, 200)[None], 16)[0].astype(float)
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    inside = round(200 * 16 / 20)
    assert (np.diff(luminance[:inside]) > 0).all()
    assert colours[0].tolist() == [0, 0, 0]
    assert (colours[inside:] == 255).all()


@pytest.mark.parametrize(('error', 'peak'), [(0, 8), (8, 8), (9, 16), (200, 255)])
def test_the_scale_of_the_error_map_follows_the_error(error, peak):
    target = np.zeros((30, 40, 3), np.uint8)
    pictures = html.encode(target, target + np.uint8(error), target)
    assert pictures.peak == peak
    drawn = np.asarray(Image.open(io.BytesIO(pictures.views['error']))).astype(int)
    wanted = html.error_colours(np.float64([[error]]), peak)[0, 0].astype(int)
    assert abs(drawn - wanted).max() <= 4  # JPEG


def test_large_images_are_reduced_and_their_patch_is_not():
    target = np.zeros((1000, 1600, 1), np.uint8)
    output = target.copy()
    output[700:710, 1500:1510] = 90
    pictures = html.encode(np.zeros((1000, 1600, 3), np.uint8), output, target)
    assert (pictures.size, pictures.shown) == ((1600, 1000), (768, 480))
    assert {Image.open(io.BytesIO(view)).size for view in pictures.views.values()} == {(768, 480)}
    left, top = pictures.corner
    patch = np.asarray(Image.open(io.BytesIO(pictures.patches['output'])))
    np.testing.assert_array_equal(patch, output[top : top + html.PATCH, left : left + html.PATCH, 0])
    assert (patch == 90).sum() == 100


def test_images_that_do_not_fit_are_refused():
    image = picture(0)
    for images in ((image, image[:-1], image), (image[:, 1:], image, image), (image, image / 255, image)):
        with pytest.raises(ValueError, match=r'uint8|shapes do not fit'):
            html.encode(*images)


def test_curves_come_from_the_lines_of_a_training(tmp_path):
    assert html.read_curves(tmp_path) == []
    lines = [
        {'step': 2, 'time': 1.0, 'loss/l1': 0.5, 'lr/generator': 1e-3, 'images_per_second': 3.0, 'd/real': 0.1},
        {'step': 4, 'time': 2.0, 'loss/l1': None, 'loss/gan': 2.0, 'lr/generator': 5e-4},
        {'step': 4, 'time': 2.0, 'val/psnr': 30.0, 'val/input_psnr': 20.0, 'val/ssim': 0.9},
        {'step': 2, 'time': 3.0, 'd/real': 0.2},
    ]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (tmp_path / 'metrics.jsonl').write_text(text + '{"step": 6, "loss/l1": 0.')
    found = {(curve.plot, curve.name): (curve.steps, curve.values) for curve in html.read_curves(tmp_path)}
    assert list(found) == [
        ('validation PSNR (dB)', 'val/psnr'),
        ('validation PSNR (dB)', 'val/input_psnr'),
        ('validation SSIM', 'val/ssim'),
        ('losses', 'loss/gan'),
        ('losses', 'loss/l1'),
        ('learning rates', 'lr/generator'),
        ('discriminator', 'd/real'),
    ]
    steps, values = found['losses', 'loss/l1']
    assert steps == [2, 4]
    np.testing.assert_equal(values, [0.5, np.nan])
    assert found['losses', 'loss/gan'] == ([4], [2.0])
    assert found['discriminator', 'd/real'] == ([2], [0.2])


@pytest.mark.parametrize('line', ['{"step": 1,', '[1]', '{"loss/l1": 1.0}', '{"step": 1, "loss/l1": "high"}', 'null'])
def test_a_spoilt_line_is_named(tmp_path, line):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(UserError, match=r'metrics\.jsonl: line 2 is not'):
        html.read_curves(tmp_path)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    curve = html.Curve('losses', 'loss/l1', range(5000), [float(i) for i in range(5000)])
    (drawn,) = Page(html.render('t', summary(), [], [curve], budget_mb=9)).content['curves']
    assert len(drawn['steps']) == 1000
    assert drawn['steps'] == drawn['values']
    assert (drawn['steps'][0], drawn['steps'][-1]) == (0, 4999)
