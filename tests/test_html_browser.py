"""The page in a real browser: an installed Chromium, driven by Playwright."""

import contextlib
import shutil

import pytest

from p2p_jax import html
from tests.test_html import HOSTILE, example, summary

sync_api = pytest.importorskip('playwright.sync_api', reason="Playwright is missing: pip install -e '.[browser]'")
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='neither chromium nor google-chrome is installed')
ARGUMENTS = (
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
)
COUNT = 30


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    examples = [example(i) for i in range(COUNT - 1)] + [example(COUNT - 1, HOSTILE, pictures=None)]
    curves = [
        html.Curve('losses', 'loss/l1', [100, 200, 300], [0.5, float('nan'), 0.25]),
        html.Curve('losses', 'loss/gan', [100, 200, 300], [2.0, 1.5, 1.0]),
        html.Curve('learning rates', 'lr/generator', [100, 300], [1e-3, 1e-6]),
    ]
    path = tmp_path_factory.mktemp('report') / 'report.html'
    path.write_text(html.render(HOSTILE, summary(), examples, curves, budget_mb=9), encoding='utf-8')
    return path


@contextlib.contextmanager
def opened(browser, file, width=1280, height=900):
    """The page in a window of that size; at the end it has loaded nothing else and nothing has failed."""
    context = browser.new_context(viewport={'width': width, 'height': height}, has_touch=width < 500)
    page = context.new_page()
    faults, asked = [], []
    page.on('console', lambda message: faults.append(message.text))
    page.on('pageerror', lambda error: faults.append(str(error)))
    page.on('request', lambda sent: asked.append(sent.url))
    page.goto(file.as_uri())
    yield page
    assert faults == []
    assert [url for url in asked if not url.startswith('data:')] == [file.as_uri()]
    context.close()


@pytest.fixture
def page(browser, file):
    with opened(browser, file) as page:
        yield page
        assert page.title().startswith('</script>')  # no name ran as a script


def names(page):
    return page.locator('.example h3').all_inner_texts()


def clip(page):
    return page.locator('.example .before').first.evaluate('image => getComputedStyle(image).clipPath')


def test_slider_moves_by_mouse_and_by_keyboard(page):
    viewer = page.locator('.viewer').first
    viewer.scroll_into_view_if_needed()
    assert clip(page) == 'inset(0px 50% 0px 0px)'
    box = viewer.bounding_box()
    page.mouse.move(box['x'] + box['width'] / 2, box['y'] + 10)
    page.mouse.down()
    page.mouse.move(box['x'] + box['width'] / 4, box['y'] + 20)
    page.mouse.up()
    assert float(clip(page).split()[1][:-1]) == pytest.approx(75, abs=0.5)
    page.mouse.move(box['x'] + box['width'] / 2, box['y'] + 10)
    assert float(clip(page).split()[1][:-1]) == pytest.approx(75, abs=0.5)  # released
    page.locator('.viewer input').first.focus()
    before = clip(page)
    page.keyboard.press('ArrowRight')
    assert clip(page) != before
    page.keyboard.press('End')
    assert clip(page) in ('inset(0px)', 'inset(0px 0% 0px 0px)')


def test_a_phone_scrolls_down_only_and_slides_by_touch(browser, file):
    with opened(browser, file, 400, 800) as page:
        assert page.evaluate('document.documentElement.scrollWidth') <= 400
        viewer = page.locator('.viewer').first
        viewer.scroll_into_view_if_needed()
        assert 280 < viewer.bounding_box()['width'] <= 400
        viewer.tap(position={'x': viewer.bounding_box()['width'] * 0.8, 'y': 30})
        assert float(clip(page).split()[1][:-1]) == pytest.approx(20, abs=0.5)
        box = viewer.bounding_box()
        touch = page.context.new_cdp_session(page)
        for kind, share in (('touchStart', 0.8), ('touchMove', 0.6), ('touchMove', 0.3), ('touchEnd', None)):
            points = [] if share is None else [{'x': box['x'] + box['width'] * share, 'y': box['y'] + 30}]
            touch.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': points})
        assert float(clip(page).split()[1][:-1]) == pytest.approx(70, abs=0.5)


ODD = {
    'none': [],
    'one': [example(0)],
    'numbers only': [example(i, pictures=None, attributes={}) for i in range(3)],
    'no score of the input': [example(i, scores={'output': {'psnr': 20.0, 'lpips': 0.1}}) for i in range(3)],
    'equal scores': [example(0), example(0)],
    'not finite': [example(0, scores={'input': {'psnr': float('nan')}, 'output': {'psnr': float('inf')}}), example(1)],
    'names of properties': [example(0, attributes={'constructor': '1'}), example(1, attributes={'__proto__': '2'})],
}


@pytest.mark.parametrize('kind', ODD)
def test_odd_evaluations_have_a_page(browser, tmp_path, kind):
    curves = [html.Curve('losses', 'loss/l1', [5], [1.0]), html.Curve('d', 'd/real', [5], [float('nan')])]
    path = tmp_path / 'odd.html'
    path.write_text(
        html.render(kind, summary(notes=[], breakdowns={}), ODD[kind], curves, budget_mb=9), encoding='utf-8'
    )
    with opened(browser, path) as page:
        assert page.locator('.example').count() == len(ODD[kind])
        assert 'NaN' not in page.content().partition('<main')[2].partition('</main>')[0]
        assert page.locator('#gains').count() == (kind not in ('none', 'no score of the input'))


def test_buttons_show_target_and_error_map(page):
    card = page.locator('.example').first
    sources = []
    for label in ('slider', 'target', 'error', 'slider'):
        card.get_by_role('button', name=label).click()
        sources.append(card.locator('.viewer img').first.get_attribute('src'))
        assert card.locator('button[aria-pressed=true]').all_inner_texts() == [label]
        assert card.locator('.before').is_visible() == (label == 'slider')
        assert card.locator('.scale').is_visible() == (label == 'error')
        assert card.locator('.viewer input').is_enabled() == (label == 'slider')
    assert len(set(sources)) == 3
    assert sources[0] == sources[3]
    assert card.locator('.patches img').count() == 3
    loaded = card.locator('img').evaluate_all('images => images.map(image => image.naturalWidth)')
    assert min(loaded) > 0


def test_sorting_and_more(page):
    page.select_option('#sort', 'output/psnr')
    assert names(page) == [f'{i}.png' for i in range(24)]
    page.click('#direction')
    assert names(page)[0] == HOSTILE
    assert names(page)[1:3] == ['28.png', '27.png']
    page.click('#more')
    assert len(names(page)) == COUNT
    assert not page.locator('#more').is_visible()
    page.select_option('#sort', 'gain/psnr')
    # The gain is 5 + i - i % 3; equal ones keep their order.
    assert names(page)[:4] == ['27.png', '28.png', HOSTILE, '24.png']
    page.select_option('#sort', 'name')
    page.click('#direction')
    assert names(page)[1:4] == ['0.png', '1.png', '2.png']


def test_filters(page):
    page.select_option('#filter-0', label='camera 1 (15)')
    assert names(page) == [*(f'{i}.png' for i in range(1, 29, 2)), HOSTILE]
    assert page.inner_text('#status') == '15 of 30 examples'
    page.fill('#search', '7.')
    assert names(page) == ['7.png', '17.png', '27.png']
    page.fill('#search', '')
    page.check('#pictured')
    assert len(names(page)) == 14
    assert page.inner_text('#pictures').startswith('29 of 30 examples have pictures: the worst,')


def test_a_point_of_the_plot_leads_to_its_example(page):
    page.fill('#search', 'nothing has this name')
    assert names(page) == []
    page.locator('#scatter a').nth(28).click()
    card = page.locator('#example-28')
    assert card.locator('h3').inner_text() == '28.png'
    assert abs(card.bounding_box()['y']) < 900
    assert page.locator('#gains rect').count() >= 5


def test_tables_and_curves(page):
    rows = page.locator('#summary tbody tr').all_inner_texts()
    assert [row.split() for row in rows] == [
        ['noisy', '20.00', '[19.50,', '20.50]', '–'],
        ['denoised', '26.00', '[25.00,', '27.00]', '–'],
    ]
    assert page.locator('#breakdowns th').filter(has_text='camera 0 (15)').count() == 1
    readout = page.locator('#curves-0 .readout')
    assert page.locator('#curves-0 path').first.get_attribute('d').count('M') == 2  # the gap of NaN
    assert page.locator('#curves-1 h3').inner_text() == 'learning rates, logarithmic'
    assert readout.inner_text().split() == ['loss/l1', '0.25', 'loss/gan', '1', 'step', '300']
    page.locator('#curves-0 svg').scroll_into_view_if_needed()
    box = page.locator('#curves-0 svg').bounding_box()
    page.mouse.move(box['x'] + box['width'] * 0.15, box['y'] + 50)
    assert readout.inner_text().split() == ['loss/l1', '0.5', 'loss/gan', '2', 'step', '100']


def test_both_schemes_are_readable(page):
    colours = []
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        style = page.evaluate(
            '[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]'
        )
        colours.append([sum(map(int, colour[4:-1].split(','))) for colour in style])
    (text, behind), (dark_text, dark_behind) = colours
    assert text + 400 < behind
    assert dark_behind + 400 < dark_text
