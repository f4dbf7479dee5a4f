import numpy as np

from p2p_jax import report


def test_grid_puts_examples_in_rows_under_captions():
    rows = [[np.full((20, 30, 3), v) for v in (0.0, 0.5, 1.0)], [np.full((10, 40, 3), v) for v in (0.2, 0.4, 0.6)]]
    picture = report.grid(rows, ['input', 'output', 'target'])
    assert picture.shape == (24 + 20 + 4 + 10, 3 * 40 + 2 * 4, 3)
    assert picture[:24].min() < 128  # the captions
    assert picture[24 + 5, [5, 34 + 5, 68 + 5], 0].tolist() == [0, 128, 255]
    assert picture[24 + 24 + 5, [5, 44 + 5, 88 + 5], 0].tolist() == [51, 102, 153]


def test_names_are_legible_without_their_accents():
    tiles = [[np.ones((20, 20, 3))]]
    for name, plain in (('façade', 'facade'), ('o\u0308l', 'ol')):
        np.testing.assert_array_equal(report.grid(tiles, names=[name]), report.grid(tiles, names=[plain]))


def test_large_images_are_shown_by_their_centre():
    image = np.zeros((600, 700, 3))
    image[300, 350] = 1
    picture = report.grid([[image]], [''])
    assert picture.shape == (24 + 512, 512, 3)
    assert picture[24 + 256, 256].tolist() == [255, 255, 255]


def test_table_shows_the_gain():
    rows = {'noisy': {'psnr': 25.0, 'ssim': 0.5}, 'denoised': {'psnr': 31.256, 'ssim': 0.91234}}
    lines = report.table('test: 2 examples', rows).splitlines()
    assert lines[0] == 'test: 2 examples'
    assert [line.split() for line in lines[2:]] == [
        ['noisy', '25.00', '0.5000'],
        ['denoised', '31.26', '0.9123'],
        ['gain', '+6.26', '+0.4123'],
    ]


def test_durations_read_as_a_person_writes_them():
    assert [report.duration(s) for s in (0.4, 45, 60, 185, 3600, 7800)] == [
        '0s',
        '45s',
        '1m00s',
        '3m05s',
        '1h00m',
        '2h10m',
    ]


def test_json_leaves_no_temporary_file(tmp_path):
    report.write_json(tmp_path / 'deep' / 'a.json', {'psnr': 1.5})
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == ['a.json']
