import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from p2p_jax import metrics
from p2p_jax.lookup import UserError
from p2p_jax.losses import GAN_LOSSES, LEAST_SIZES, PIXEL_LOSSES
from tests.conftest import noisy, picture

SCORES = np.random.default_rng(0).normal(size=(3, 4, 5, 1)) * 3


def mean(values):
    return values.reshape(len(values), -1).mean(1)


def test_vanilla_is_binary_cross_entropy_on_logits():
    probability = 1 / (1 + np.exp(-SCORES))
    loss = GAN_LOSSES['vanilla'](0.0)
    np.testing.assert_allclose(loss.real(jnp.asarray(SCORES)), mean(-np.log(probability)), rtol=1e-5)
    np.testing.assert_allclose(loss.generated(jnp.asarray(SCORES)), mean(-np.log(1 - probability)), rtol=1e-5)
    np.testing.assert_allclose(loss.generator(jnp.asarray(SCORES)), mean(-np.log(probability)), rtol=1e-5)
    assert loss.on_logits


def test_vanilla_is_finite_for_huge_logits():
    huge = jnp.array([[1e4], [-1e4]])
    for term in GAN_LOSSES['vanilla'](0.0)[:3]:
        assert np.isfinite(term(huge)).all()


def test_lsgan_is_the_squared_distance_to_the_label():
    loss = GAN_LOSSES['lsgan'](0.0)
    np.testing.assert_allclose(loss.real(jnp.asarray(SCORES)), mean((SCORES - 1) ** 2), rtol=1e-5)
    np.testing.assert_allclose(loss.generated(jnp.asarray(SCORES)), mean(SCORES**2), rtol=1e-5)
    np.testing.assert_allclose(loss.generator(jnp.asarray(SCORES)), mean((SCORES - 1) ** 2), rtol=1e-5)


@pytest.mark.parametrize('name', GAN_LOSSES)
def test_the_generator_pays_less_where_it_fools_the_discriminator(name):
    fooled, caught = jnp.full((1, 2, 2, 1), 0.9), jnp.full((1, 2, 2, 1), 0.1)
    loss = GAN_LOSSES[name](0.0)
    assert loss.generator(fooled) < loss.generator(caught)
    assert loss.real(fooled) < loss.real(caught)
    assert loss.generated(fooled) > loss.generated(caught)


def test_hinge_and_the_critic_s_loss():
    scores = jnp.asarray(SCORES)
    hinge, critic = (GAN_LOSSES[name](0.0) for name in ('hinge', 'wgan_gp'))
    np.testing.assert_allclose(hinge.real(scores), mean(np.maximum(1 - SCORES, 0)), rtol=1e-5)
    np.testing.assert_allclose(hinge.generated(scores), mean(np.maximum(1 + SCORES, 0)), rtol=1e-5)
    for loss in (hinge, critic):
        np.testing.assert_allclose(loss.generator(scores), mean(-SCORES), rtol=1e-4)
        assert loss.on_logits
    np.testing.assert_allclose(critic.real(scores) + critic.generated(scores), 0, atol=1e-6)
    np.testing.assert_allclose(critic.generated(scores), mean(SCORES), rtol=1e-4)
    assert {name for name, build in GAN_LOSSES.items() if build(0.0).gradient_penalty} == {'wgan_gp'}


def test_label_smoothing_moves_the_real_target_only():
    scores, p = jnp.asarray(SCORES), 1 / (1 + np.exp(-SCORES))
    vanilla, lsgan = (GAN_LOSSES[name](0.1) for name in ('vanilla', 'lsgan'))
    np.testing.assert_allclose(vanilla.real(scores), mean(-0.9 * np.log(p) - 0.1 * np.log(1 - p)), rtol=1e-5)
    np.testing.assert_allclose(lsgan.real(scores), mean((SCORES - 0.9) ** 2), rtol=1e-5)
    for name, smooth in (('vanilla', vanilla), ('lsgan', lsgan)):
        for term in ('generated', 'generator'):
            sharp = getattr(GAN_LOSSES[name](0.0), term)
            np.testing.assert_array_equal(getattr(smooth, term)(scores), sharp(scores))
    for name in ('hinge', 'wgan_gp'):
        with pytest.raises(UserError, match=f"gan.label_smoothing=0.1: gan.mode='{name}' has no labels"):
            GAN_LOSSES[name](0.1)


def test_l1_gives_one_value_an_example():
    output, target = np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))
    output[1] = -0.25
    np.testing.assert_allclose(pixel_loss('l1', (0, 1))(jnp.asarray(output), jnp.asarray(target)), [0, 0.25])


def pixel_loss(name, value_range):
    return jax.jit(PIXEL_LOSSES[name](value_range))


def images(value_range, height=50, width=40):
    """Two noisy images and the clean ones, float32 (2, h, w, 3) in the value range."""
    targets = np.stack([picture(seed, height, width) for seed in range(2)])
    outputs = np.stack([noisy(image, seed) for seed, image in enumerate(targets)])
    low, high = value_range
    return [np.float32(x / 255 * (high - low) + low) for x in (outputs, targets)]


@pytest.mark.parametrize('value_range', [(0.0, 1.0), (-1.0, 1.0)])
def test_pixel_losses_against_numpy(value_range):
    output, target = images(value_range)
    x, difference = np.float64(output), np.float64(output) - target
    peak = value_range[1] - value_range[0]
    expected = {
        'l1': mean(abs(difference)),
        'l2': mean(difference**2),
        'charbonnier': mean(np.sqrt(difference**2 + 1e-3**2)),
        'psnr': 10 * np.log10(mean((difference / peak) ** 2) + 1e-8),
        'tv': mean(abs(x[:, 1:] - x[:, :-1])) + mean(abs(x[:, :, 1:] - x[:, :, :-1])),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(pixel_loss(name, value_range)(output, target), values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('value_range', [(0.0, 1.0), (-1.0, 1.0)])
def test_ssim_and_psnr_are_those_of_the_scores(value_range):
    output, target = images(value_range)
    zero_based = [x - value_range[0] for x in (output, target)]
    peak = value_range[1] - value_range[0]
    expected = [
        structural_similarity(
            x, y, data_range=peak, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1
        )
        for x, y in zip(*zero_based, strict=True)
    ]
    values = pixel_loss('ssim', value_range)(output, target)
    np.testing.assert_allclose(values, 1 - np.array(expected), atol=1e-5)
    np.testing.assert_allclose(values, 1 - metrics.ssim(*map(jnp.asarray, zero_based), peak), atol=1e-5)
    psnr = metrics.psnr(*map(jnp.asarray, zero_based), peak)
    np.testing.assert_allclose(pixel_loss('psnr', value_range)(output, target), -psnr, atol=1e-4)


def reference_ms_ssim(x, y):
    """MS-SSIM of two images (h, w, c) in [0, 1], in float64, with scipy's Gaussian filter."""

    def blur(image):
        return gaussian_filter(image, (1.5, 1.5, 0), radius=5)[5:-5, 5:-5]

    product = np.ones(x.shape[-1])
    for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        if scale:
            x, y = (
                sum(z[i : z.shape[0] // 2 * 2 : 2, j : z.shape[1] // 2 * 2 : 2] for i in (0, 1) for j in (0, 1)) / 4
                for z in (x, y)
            )
        mx, my = blur(x), blur(y)
        similarity = (2 * (blur(x * y) - mx * my) + 9e-4) / (blur(x * x) - mx**2 + blur(y * y) - my**2 + 9e-4)
        if scale == 4:
            similarity *= (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        product *= similarity.mean((0, 1)) ** weight
    return product.mean()


@pytest.mark.parametrize('value_range', [(0.0, 1.0), (-1.0, 1.0)])
def test_ms_ssim_against_numpy(value_range):
    output, target = images(value_range, 203, 177)  # odd at several scales
    unit = [(np.float64(x) - value_range[0]) / (value_range[1] - value_range[0]) for x in (output, target)]
    expected = [1 - reference_ms_ssim(x, y) for x, y in zip(*unit, strict=True)]
    assert min(expected) > 0.005
    np.testing.assert_allclose(pixel_loss('ms_ssim', value_range)(output, target), expected, atol=1e-5)


@pytest.mark.parametrize(('name', 'least'), LEAST_SIZES.items())
def test_losses_work_from_their_least_size_on(name, least):
    x = jnp.zeros((1, least, least, 1))
    assert np.isfinite(pixel_loss(name, (0, 1))(x, x)).all()
    if name != 'tv':
        with pytest.raises(ValueError, match=f'{name} is not defined for an image of {least}×{least - 1} pixels'):
            pixel_loss(name, (0, 1))(x[:, :, 1:], x[:, :, 1:])


@pytest.mark.parametrize('name', PIXEL_LOSSES)
def test_gradients_are_finite_everywhere_and_equal_images_cost_least(name):
    output, target = images((-1.0, 1.0), 176, 176)
    flat = np.full_like(target, 0.3)
    loss = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(PIXEL_LOSSES[name]((-1.0, 1.0))(x, y))))
    cases = {'noise': (output, target), 'equal': (target, target), 'flat': (flat, flat), 'edge': (flat * 0 - 1, flat)}
    cases |= {'against': (-target, target), 'half': (flat, target)}
    values = {}
    for case, pair in cases.items():
        values[case], slope = loss(*pair)
        assert np.isfinite(values[case]) and np.isfinite(slope).all(), case
    if name != 'tv':
        assert values['equal'] < values['noise'] < values['against']
    assert np.any(loss(output, target)[1])


def test_every_pixel_loss_falls_along_its_gradient():
    output, target = images((0.0, 1.0), 176, 176)
    for name, build in PIXEL_LOSSES.items():
        loss = jax.jit(lambda x, build=build: jnp.sum(build((0.0, 1.0))(x, target)))
        slope = jax.jit(jax.grad(loss))(output)
        step = 1e-3 / jnp.max(jnp.abs(slope)) * slope
        assert loss(output - step) < loss(output), name
