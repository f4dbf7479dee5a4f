"""Whether images show the same, by themselves and among many.

Images are compared by spectra: the discrete cosine transform of their grey thumbnail of 32×32. The mean over many
pixels hardly depends on noise, size and compression; the correlation of two thumbnails is that of their spectra
without the constant (Parseval); to mirror and to turn is to change signs and to transpose. Perceptual hashes rest on
the same transform (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions") but keep signs
only. The thresholds were set on PolyU, façades, BSD400 and CIFAR-10.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from p2p_jax.data.sources import Source

SIDE = 32  # of the thumbnails, in pixels
BANDS = 14  # finer frequencies, in half periods a side, do not survive other sizes and small crops
_COARSE = 8  # those below survive crops better: they find the candidates
_FLOOR = 6.0  # of a coefficient, 0.2 grey levels, about what rounding leaves: smooth pictures have no detail above it
_U, _V = np.mgrid[:SIDE, :SIDE]
_RADIUS = np.hypot(_U, _V).astype(np.float32)
# Without the means of rows and columns: skies, vignettes and horizons are alike in different pictures.
_USED = ((_U > 0) & (_V > 0) & (_RADIUS < BANDS))[:BANDS, :BANDS]
_BAND = _RADIUS[:BANDS, :BANDS][_USED].astype(int)
_NEAR = 0.65, 0.5  # correlation of the detail of candidates for copies, and times what detail both have; BSD400: 0.42
_COARSELY = 0.6  # correlation of the coarse detail of candidates of which one may be a part of the other
MOST_CANDIDATES = 3000  # that are read again
_CROPS = (0.95, 0.9, 0.85, 0.8)  # shares of height and width that a crop leaves
COPY = 0.72  # local correlation of copies; label maps of different façades reach 0.66, copies of 32² 0.73 and more
_SMOOTH = 0.7  # local correlation of a picture with itself, 4 of 64 pixels on, above which it is no evidence …
_RICH = 0.85  # … unless so much detail is the same; waves reach 0.78

Pair = tuple[float, int, int]  # similarity, one, other


def without_alpha(pixels: np.ndarray) -> np.ndarray:
    """Leaves out alpha: (height, width, 1 or 3)."""
    return pixels[..., :1] if pixels.shape[-1] < 3 else pixels[..., :3]


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Returns float32 (height, width) in [0, 255] of uint8 or uint16 (height, width, 1 to 4)."""
    colours = without_alpha(pixels)
    if colours.dtype == np.uint16:
        return colours.mean(-1, dtype=np.float32) / np.float32(257)
    if colours.shape[-1] == 1:
        return colours[..., 0].astype(np.float32)
    return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert('L'), np.float32)


def _resize(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the means over the parts of the image that height × width pixels cover."""
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BOX))


def spectrum_of(grey: np.ndarray) -> np.ndarray:
    """Returns the DCT of the thumbnail, float32 (32, 32); [0, 0] is 32 times the mean."""
    from scipy import fft

    return fft.dctn(_resize(grey, SIDE, SIDE), norm='ortho')


def _unit(rows: np.ndarray) -> np.ndarray:
    """Returns (n, …) as (n, features), each row of length 1, or of zeros."""
    flat = rows.reshape(len(rows), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.float32(1e-6))


def reliability(grey: np.ndarray, spectrum: np.ndarray) -> float:
    """Returns the share of the coarse contrast that is certainly no noise, 0 to 1.

    Noise in the thumbnail is what it averaged away, or its finer frequencies, or rounding, whichever is most: texture
    counts as such. Eight times as much is assumed, for the noise of compressed photographs is coarser than a pixel.
    """
    coarse = float(np.sum(spectrum[:_COARSE, :_COARSE] ** 2) - spectrum[0, 0] ** 2)
    within = float(np.vdot(grey, grey)) / grey.size - float(np.vdot(spectrum, spectrum)) / spectrum.size
    averaged = within / max(1.0, grey.size / spectrum.size)
    noise = max(averaged, float(np.mean(spectrum[_COARSE:, _COARSE:] ** 2)), 0.25)
    return max(0.0, 1 - 8 * _COARSE**2 * noise / coarse) if coarse > 0 else 0.0


def _overlap(a: np.ndarray, b: np.ndarray, down: int, right: int) -> float:
    """Pearson correlation of a, which lies (down, right) of b, and b, where both are."""
    height, width = a.shape
    a = a[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    b = b[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    return float(np.vdot(*_unit(np.stack([a - a.mean(), b - b.mean()]))))


def find_shift(a: np.ndarray, b: np.ndarray) -> tuple[int, int, float, float] | None:
    """Returns how far input a lies off target b, as in `_Look`, where that is beyond doubt.

    The peak of the cross-correlation, by FFT, of what a small mean leaves over a wide one. Large shifts, and those
    under noise, are sought over the whole, reduced to 128 and 256 pixels, small ones in the middle in full resolution.
    The shift must explain half of what does not correlate: noise and texture have many peaks, but none like that.
    """
    from scipy import fft, ndimage

    (height, width), sharp = a.shape, True
    tries = []
    for scale in sorted({max(1.0, max(height, width) / side) for side in (128, 256)}, reverse=True):
        small = round(height / scale), round(width / scale)
        whole = [_resize(g, *small) for g in (a, b)]
        tries.append((*whole, min(32, min(small) // 4), scale))
    if scale > 1:
        top, left = max(0, height // 2 - 128), max(0, width // 2 - 128)
        tries.append((*(g[top : top + 256, left : left + 256] for g in (a, b)), 16, 1.0))
    for one, other, most, pixels in reversed(tries):
        if min(one.shape) < SIDE:
            continue
        contrast = one.std(), other.std()
        one, other = (ndimage.uniform_filter(g, 3) - ndimage.uniform_filter(g, 13) for g in (one, other))
        # A blur may be lopsided and move what it blurs.
        sharp = sharp and one.std() * contrast[1] >= 0.85 * other.std() * contrast[0]
        shape = [fft.next_fast_len(n + most, real=True) for n in one.shape]
        cross = fft.irfft2(fft.rfft2(one, shape) * np.conj(fft.rfft2(other, shape)), shape)
        near = np.roll(cross, (most, most), (0, 1))[: 2 * most + 1, : 2 * most + 1]
        down, right = (int(i) - most for i in np.unravel_index(near.argmax(), near.shape))
        before, after = _overlap(one, other, 0, 0), _overlap(one, other, down, right)
        far = max(abs(down), abs(right)) * pixels >= (2 if sharp else 8)
        if far and after >= 0.7 and 1 - after <= 0.5 * (1 - before):
            return round(down * pixels), round(right * pixels), before, after
    return None


def detail_of(spectra: np.ndarray) -> np.ndarray:
    """Returns what tells pictures apart: (n, 139) coefficients, made equally strong in every band of frequencies.

    Otherwise all skies would be alike. The length of a row, at most 1, says how much detail is above the floor.
    """
    rows = spectra[:, :BANDS, :BANDS][:, _USED].astype(np.float32)
    for band in np.unique(_BAND):
        power = np.mean(rows[:, band == _BAND] ** 2, 1, keepdims=True)
        rows[:, band == _BAND] /= np.sqrt(power + np.float32(_FLOOR**2))
    return rows / np.float32(len(_BAND) ** 0.5)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the Pearson correlations, (n,), of the coarse parts of spectra without constant, (n, 32, 32)."""
    return np.sum(_unit(a[:, :_COARSE, :_COARSE]) * _unit(b[:, :_COARSE, :_COARSE]), 1)


def _turned(spectra: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields in which ways pictures can be turned, and their spectra, (n, 32, 32), then."""
    rows, columns = (np.where(axis % 2, -1, 1).astype(np.float32) for axis in (_U, _V))
    exchanged = spectra.swapaxes(1, 2)
    yield 'mirrored left to right', spectra * columns
    yield 'mirrored upside down', spectra * rows
    yield 'turned by 180°', spectra * rows * columns
    yield 'turned by 90° counter-clockwise', exchanged * rows
    yield 'turned by 90° clockwise', exchanged * columns
    yield 'mirrored along a diagonal', exchanged
    yield 'mirrored along the other diagonal', exchanged * rows * columns


def surplus(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns by how many standard deviations the sum of the fits of pairs differs from that of shuffled pairs.

    What is compared is the fine structure of the thumbnails, and where they have edges. Mean and variance under all
    permutations are known (Hoeffding 1951, "A combinatorial central limit theorem").

    Args:
      inputs: spectra, float32 (n, 32, 32).
      targets: likewise.

    Returns:
      (2, n): by structure and by edges; at k for the input of each with the target of the k-th after it.
    """
    from scipy import fft, ndimage

    def traits(spectra: np.ndarray) -> list[np.ndarray]:
        thumbnails = fft.idctn(spectra, axes=(1, 2), norm='ortho')
        edges = np.hypot(ndimage.sobel(thumbnails, 1), ndimage.sobel(thumbnails, 2))
        fine = np.where(_RADIUS < 3, 0, spectra * _RADIUS)
        return [_unit(fine), _unit(edges - ndimage.uniform_filter(edges, (1, 7, 7)))]

    n, index, rows = len(inputs), np.arange(len(inputs)), []
    for a, b in zip(traits(inputs), traits(targets), strict=True):
        fit = a @ b.T
        variance = np.sum((fit - fit.mean(0) - fit.mean(1, keepdims=True) + fit.mean()) ** 2) / (n - 1)
        sums = np.array([fit[index, (index + k) % n].sum() for k in range(n)])
        rows.append(np.abs(sums - n * fit.mean()) / max(1e-6, variance**0.5))
    return np.stack(rows)


def find_candidates(detail: np.ndarray, scenes: np.ndarray) -> list[Pair]:
    """Returns images of different scenes that may be copies, those with the same detail first.

    Args:
      detail: (n, 139).
      scenes: numbers, (n,).
    """
    coarse = detail[:, _BAND < _COARSE] * np.float32((len(_BAND) / np.sum(_BAND < _COARSE)) ** 0.5)
    lengths = np.linalg.norm(detail, axis=1)
    best: list[Pair] = []
    for start in range(0, len(detail), 512):
        rough = coarse[start : start + 512] @ coarse[start:].T
        one, other = (found + start for found in np.nonzero(rough >= _COARSELY))
        keep = (other > one) & (scenes[one] != scenes[other])
        one, other = one[keep], other[keep]
        for some in np.array_split(np.arange(len(one)), len(one) // 100_000 + 1):
            i, j = one[some], other[some]
            product = np.einsum('ij,ij->i', detail[i], detail[j])
            alike = product / (lengths[i] * lengths[j])
            score = np.where((alike >= _NEAR[0]) & (product >= _NEAR[1]), 1 + alike, rough[i - start, j - start])
            best += zip(score.tolist(), i.tolist(), j.tolist(), strict=True)
        best = heapq.nlargest(MOST_CANDIDATES, best)
    return best


def likeness(sources: Sequence[Source]) -> float:
    """Returns the local correlation of two images, where one may be a part of the other; 0 where they are too smooth.

    What a small mean leaves over a wide one counts by its sign and form, hardly by its contrast, so that everything
    within the same frame must agree, too. Waves and gradients agree with everything like them: they prove nothing.
    """
    from scipy import ndimage
    from skimage import feature

    def local(grey: np.ndarray) -> np.ndarray:
        band = ndimage.uniform_filter(grey, 3) - ndimage.uniform_filter(grey, 13)
        return band / np.sqrt(ndimage.uniform_filter(band**2, 13) + np.float32(1))

    greys = [_resize(to_grey(source.read()), 64, 64) for source in sources]
    one, other = map(local, greys)
    itself = max(_overlap(g, g, *step) for g in (one, other) for step in ((0, 4), (4, 0), (3, 3), (3, -3)))
    if itself >= _SMOOTH and np.vdot(*detail_of(np.stack([spectrum_of(grey) for grey in greys]))) < _RICH:
        return 0.0
    best = _overlap(one, other, 0, 0)
    for (whole, part), share in itertools.product((greys, greys[::-1]), _CROPS):
        if best < COPY:
            side = round(64 * share)
            part = _resize(part, side, side)
            fit = feature.match_template(*(g - ndimage.uniform_filter(g, 17) for g in (whole, part)))
            top, left = np.unravel_index(fit.argmax(), fit.shape)
            best = max(best, _overlap(local(whole[top : top + side, left : left + side]), local(part), 0, 0))
    return best


def better_fits(
    here: np.ndarray, targets: np.ndarray, others: np.ndarray, some: list[int]
) -> list[tuple[int | str, float] | None]:
    """Returns what fits some inputs decidedly better than their target does, and the correlation then.

    It is the number of another target, or how their own would have to be turned. It must leave a quarter of what does
    not correlate, and the detail must agree as well, which that of different pictures does not.

    Args:
      here: spectra of the m inputs in question.
      targets: of all targets.
      others: their `detail_of`.
      some: which of all pairs are in question, (m,).
    """
    fits = detail_of(here) @ others.T
    before, own = correlations(here, targets[some]), fits[np.arange(len(some)), some]
    fits[np.arange(len(some)), some] = -1
    best = fits.argmax(1)
    options: list[tuple] = [(best.tolist(), fits.max(1), correlations(here, targets[best]))]
    for way, turned in _turned(here):
        detail = np.sum(detail_of(turned) * others[some], 1)
        options.append(([way] * len(some), detail, correlations(turned, targets[some])))
    least = np.maximum(0.4, own + 0.3)
    found: list[tuple[int | str, float] | None] = [None] * len(some)
    for names, detail, plain in options:
        for i in np.nonzero((detail >= least) & (plain >= 0.9) & (1 - plain <= 0.25 * (1 - before)))[0]:
            found[i], least[i] = (names[i], float(plain[i])), detail[i]
    return found
