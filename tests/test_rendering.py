"""Model images and artificial stars, as users ask for them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import NDData
from astropy.table import MaskedColumn
from photutils.psf import GriddedPSFModel, ImagePSF

import gpuphot

from .psfs import awkward_positions, load_psf, make_psf, model_of, write_psf_file

SHAPE = 60, 80
CONSTANT = make_psf(25, 25, 1.0, 0)
DICTIONARIES = [
    "constant", "degree 2, sampled 0.53", "degree 1, sampled 1/3", "coarse", "DECam r", "DES",
]  # fmt: skip


@pytest.fixture
def stars(rng):
    """Positions and fluxes of stars on the image and beyond all its edges."""
    x, y = awkward_positions(rng, 120, SHAPE[0] + 40, SHAPE[1] + 40)
    return x - 20, y - 20, rng.normal(100, 80, len(x))


def by_stdpipe(image, psf, x, y, flux):
    place = pytest.importorskip("stdpipe.psf").place_psf_stamp
    image = np.array(image, np.float64)
    for star in zip(x, y, flux, strict=True):
        place(image, psf, *star)
    return image


def in_double_precision(psf):
    """The dictionary with planes of float64, which stdpipe then adds up with fewer roundings."""
    return psf | {"data": np.asarray(psf["data"], np.float64)}


def assert_close(image, expected, scale):
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-12 * np.abs(scale).max())


@pytest.mark.parametrize("name", DICTIONARIES)
def test_stars_are_where_stdpipe_puts_them(rng, stars, backend, name):
    psf = in_double_precision(load_psf(name))
    expected = by_stdpipe(np.zeros(SHAPE), psf, *stars)
    image = gpuphot.render_psf_image(psf, *stars, SHAPE, backend=backend)
    assert (image.shape, image.dtype, type(image)) == (SHAPE, np.float64, np.ndarray)
    assert_close(image, expected, expected)
    sky = rng.normal(10, 1, SHAPE)
    placed = gpuphot.place_psf_stamps(sky, psf, *stars, backend=backend)
    assert (placed.dtype, type(placed)) == (np.float64, np.ndarray)
    assert_close(placed, by_stdpipe(sky, psf, *stars), expected)
    np.testing.assert_array_equal(placed, sky + image)


def gridded_model():
    planes = np.stack([make_psf(27, 27, 0.5, 0, seed)["data"][0] for seed in range(4)])
    planes /= planes.sum(axis=(1, 2), keepdims=True) / 4
    positions = [(0, 0), (80, 0), (0, 60), (80, 60)]
    return GriddedPSFModel(NDData(planes, meta={"grid_xypos": positions, "oversampling": 2}))


def image_psf():
    return ImagePSF(make_psf(27, 27, 0.5, 0)["data"][0].astype(float), oversampling=2)


@pytest.mark.parametrize(
    "make",
    [lambda: 3.3, lambda: np.float32(2), lambda: 4, gridded_model, image_psf],
    ids=["FWHM", "float32", "integer", "gridded", "photutils"],
)
@pytest.mark.fresh_seed
def test_whatever_stands_for_a_psf(stars, ops, backend, make):
    psf = make()
    expected = ops.to_host(ops.render_psf_image(SHAPE, model_of(psf), *map(ops.to_device, stars)))
    assert expected.any()
    for each in (psf, model_of(psf)):
        image = gpuphot.render_psf_image(each, *stars, SHAPE, backend=backend)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.fresh_seed
def test_psf_may_be_a_file(stars, backend, tmp_path):
    psf = make_psf(25, 25, 0.9, 2)
    path = write_psf_file(tmp_path / "made_up.psf", psf)
    expected = gpuphot.render_psf_image(psf, *stars, SHAPE, backend=backend)
    for each in (path, str(path)):
        image = gpuphot.render_psf_image(each, *stars, SHAPE, backend=backend)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.fresh_seed
def test_one_flux_for_all_stars(stars, backend):
    x, y, _ = stars
    expected = gpuphot.render_psf_image(3.0, x, y, np.full(len(x), 7.0), SHAPE, backend=backend)
    for flux in (7, 7.0, np.float32(7), np.array(7)):
        image = gpuphot.render_psf_image(3.0, x, y, flux, SHAPE, backend=backend)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.fresh_seed
def test_stars_without_a_place_or_a_flux_put_no_light(stars, backend):
    x, y, flux = (np.concatenate([v, np.full(6, 30.0)]) for v in stars)
    x[-6:-4], y[-4:-2], flux[-2:] = (np.nan, -np.inf), (np.inf, 1e300), (np.nan, np.inf)
    expected = gpuphot.render_psf_image(CONSTANT, *stars, SHAPE, backend=backend)
    image = gpuphot.render_psf_image(CONSTANT, x, y, flux, SHAPE, backend=backend)
    np.testing.assert_array_equal(image, expected)
    masked = MaskedColumn(np.where(np.isfinite(x), x, 30.0), mask=~np.isfinite(x))
    image = gpuphot.render_psf_image(CONSTANT, masked, y, flux, SHAPE, backend=backend)
    np.testing.assert_array_equal(image, expected)
    for empty in ([], np.full(3, np.nan)):
        image = gpuphot.place_psf_stamps(np.ones(SHAPE), 3.0, empty, empty, 1.0, 1, backend=backend)
        np.testing.assert_array_equal(image, 1)


@pytest.mark.parametrize("dtype", ["u1", ">i2", "<f4", ">f8", "f2", "?"])
def test_images_of_any_dtype(backend, dtype):
    sky = np.random.default_rng(0).uniform(0, 100, SHAPE).astype(dtype)
    before = sky.copy()
    light = gpuphot.render_psf_image(3.0, [30.2], [20.6], 100.0, SHAPE, backend=backend)
    image = gpuphot.place_psf_stamps(sky, 3.0, [30.2], [20.6], 100.0, backend=backend)
    assert image.dtype == np.float64
    np.testing.assert_array_equal(image, light + sky.astype(float))
    np.testing.assert_array_equal(sky, before)
    assert sky.dtype == before.dtype


def test_of_a_masked_image_the_data_are_used(backend):
    sky = np.ma.array(np.ones(SHAPE), mask=np.eye(*SHAPE, dtype=bool))
    image = gpuphot.place_psf_stamps(sky, 3.0, [30.2], [20.6], 100.0, backend=backend)
    expected = gpuphot.place_psf_stamps(sky.data, 3.0, [30.2], [20.6], 100.0, backend=backend)
    assert type(image) is np.ndarray
    np.testing.assert_array_equal(image, expected)


def test_pixels_that_are_not_finite_stay_so(backend):
    sky = np.zeros(SHAPE)
    sky[20, 30:32] = np.nan, np.inf
    image = gpuphot.place_psf_stamps(sky, 3.0, [30.2], [20.6], 100.0, 2.0, 1, backend=backend)
    np.testing.assert_array_equal(np.isfinite(image), np.isfinite(sky))


@pytest.mark.parametrize("gain", [None, 2.0])
@pytest.mark.fresh_seed
def test_what_the_caller_hands_over_is_left_alone(rng, stars, backend, gain):
    psf = make_psf(25, 25, 0.9, 2)
    given = [rng.normal(10, 1, SHAPE), psf["data"], *stars]
    before = [values.copy() for values in given]
    for values in given:
        values.flags.writeable = False
    image = gpuphot.place_psf_stamps(given[0], psf, *stars, gain, 5, backend=backend)
    assert not np.shares_memory(image, given[0])
    for values, copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(values, copy)


@pytest.mark.fresh_seed
def test_order_of_rows_changes_no_bit(rng, stars, backend):
    expected = gpuphot.render_psf_image(CONSTANT, *stars, SHAPE, backend=backend)
    order = rng.permutation(len(stars[0]))
    permuted = gpuphot.render_psf_image(
        CONSTANT, *(v[order] for v in stars), SHAPE, backend=backend
    )
    np.testing.assert_array_equal(permuted, expected)


@pytest.mark.fresh_seed
@pytest.mark.parametrize("gain", [0.5, 4.0])
def test_noise_is_that_of_electrons(rng, backend, gain):
    """Two stars whose light overlaps; mean and variance within 5 of their standard errors."""
    x, y, flux = np.array([10.3, 12.6]), np.array([11.0, 9.7]), np.array([4000.0, 2500.0])
    light = gpuphot.render_psf_image(3.0, x, y, flux, (20, 22), backend=backend)
    n, dark = 2000, np.zeros(light.shape)
    options = {"gain": gain, "rng": rng, "backend": backend}
    drawn = np.array([gpuphot.place_psf_stamps(dark, 3.0, x, y, flux, **options) for _ in range(n)])
    np.testing.assert_array_equal(drawn[:, light == 0], 0)
    np.testing.assert_allclose(drawn * gain, np.rint(drawn * gain), atol=1e-9)
    bright = light * gain > 10
    mean, variance = light[bright], light[bright] / gain
    deviation = (drawn[:, bright].mean(axis=0) - mean) / np.sqrt(variance / n)
    assert np.abs(deviation).max() < 5
    excess = (drawn[:, bright].var(axis=0, ddof=1) / variance - 1) / np.sqrt(2.1 / n)
    assert np.abs(excess).max() < 5
    total = drawn.sum(axis=(1, 2))
    assert abs(total.mean() - light.sum()) < 5 * np.sqrt(light.sum() / gain / n)


@pytest.mark.fresh_seed
def test_noise_is_reproducible(rng, stars, backend):
    sky, seed = rng.normal(10, 1, SHAPE), int(rng.integers(1 << 30))

    def image(rng):
        return gpuphot.place_psf_stamps(sky, CONSTANT, *stars, 2.0, rng, backend=backend)

    expected = image(seed)
    np.testing.assert_array_equal(image(seed), expected)
    np.testing.assert_array_equal(image(np.random.default_rng(seed)), expected)
    assert (image(seed + 1) != expected).any()
    assert (image(None) != image(None)).any()
    generator = np.random.default_rng(seed)
    assert (image(generator) != image(generator)).any()


def test_negative_light_and_dark_pixels_get_no_noise(backend):
    sky = np.random.default_rng(0).normal(10, 1, SHAPE)
    x, y, flux = [20.3, 50.0], [20.0, 40.0], [-500.0, 500.0]
    light = gpuphot.render_psf_image(3.0, x, y, flux, SHAPE, backend=backend)
    image = gpuphot.place_psf_stamps(sky, 3.0, x, y, flux, 2.0, 1, backend=backend)
    bright = light > 0
    assert (light < 0).any()
    assert (light == 0).any()
    np.testing.assert_array_equal(image[~bright], (sky + light)[~bright])
    assert (image[bright] != (sky + light)[bright]).any()


STARS = {"psf": 3.0, "x": [20.0, 40.0], "y": [30.0, 25.5], "flux": [1.0, 2.0]}
EVEN = {"data": np.ones((4, 4)), "sampling": 0.5}
REFUSED_STARS = {
    "x scalar": ({"x": 20.0}, ValueError, r"x must be a 1-D array, got shape \(\)"),
    "x two-dimensional": ({"x": np.ones((2, 2))}, ValueError, r"x must .*shape \(2, 2\)"),
    "x strings": ({"x": ["a", "b"]}, TypeError, "x must be an array of real numbers"),
    "x ragged": ({"x": [[1.0], [1.0, 2.0]]}, TypeError, "x must be an array"),
    "x complex": ({"x": [1j, 2]}, TypeError, "x must be an array of real numbers"),
    "x in degrees": ({"x": [1, 2] * u.deg}, ValueError, "x must be in pixels, got .*'deg'"),
    "x in magnitudes": ({"y": u.Magnitude([1, 2])}, ValueError, "y must be in pixels, got"),
    "flux in magnitudes": ({"flux": [1, 2] * u.mag}, ValueError, "flux must be .*unit"),
    "x None": ({"x": None}, TypeError, "x must be an array of real numbers"),
    "y shorter": ({"y": [1.0]}, ValueError, r"y must be a 1-D array of 2 .*shape \(1,\)"),
    "y scalar": ({"y": 1.0}, ValueError, r"y must be .*shape \(\)"),
    "y objects": ({"y": [None, 1.0]}, TypeError, "y must be an array of real numbers"),
    "flux longer": ({"flux": [1, 2, 3]}, ValueError, r"flux must be .* of 2 .*shape \(3,\)"),
    "flux one of two": ({"flux": [1.0]}, ValueError, r"flux must be .* of 2 .*shape \(1,\)"),
    "flux string": ({"flux": "bright"}, TypeError, "flux must be a number, .*'bright'"),
    "flux masked": ({"flux": np.ma.masked}, TypeError, "flux must be a number"),
    "flux None": ({"flux": None}, TypeError, "flux must be an array of real numbers"),
    "flux ragged": ({"flux": [[1.0], [1.0, 2.0]]}, TypeError, "flux must be an array"),
    "psf None": ({"psf": None}, TypeError, "psf must be a PSFModel, .*NoneType"),
    "psf list": ({"psf": [1]}, TypeError, "psf must be a PSFModel, .*list"),
    "psf empty": ({"psf": {}}, ValueError, "psf must have an entry"),
    "psf FWHM negative": ({"psf": -1.0}, ValueError, "FWHM of psf must be a positive number"),
    "psf even": ({"psf": EVEN}, ValueError, "psf must make stamps of an odd number .*2 x 2"),
    "psf missing file": ({"psf": "nowhere.psf"}, FileNotFoundError, "nowhere.psf"),
    "backend": ({"backend": "torch"}, ValueError, "backend must be one of numpy, cupy"),
}
REFUSED_SHAPES = {
    "empty": ((0, 5), ValueError, "shape must be an integer of at least 1, got 0"),
    "negative": ((5, -1), ValueError, "shape must be an integer of at least 1, got -1"),
    "one number": (5, ValueError, r"shape must be \(rows, columns\), got 5"),
    "three numbers": ((5, 5, 5), ValueError, r"shape must be \(rows, columns\)"),
    "fractions": ((5.5, 5), TypeError, "shape must be an integer"),
    "string": ("ab", ValueError, r"shape must be \(rows, columns\)"),
    "None": (None, ValueError, r"shape must be \(rows, columns\)"),
}
REFUSED_IMAGES = {
    "image complex": ({"image": np.ones(SHAPE, complex)}, TypeError, "image must be .*complex"),
    "image 3-D": ({"image": np.ones((2, 3, 4))}, ValueError, r"image must .*\(2, 3, 4\)"),
    "image empty": ({"image": np.ones((0, 5))}, ValueError, r"image must .*\(0, 5\)"),
    "image scalar": ({"image": 5.0}, ValueError, r"image must be a 2-D array"),
    "image strings": ({"image": [["a"]]}, TypeError, "image must be an array of real numbers"),
    "image in magnitudes": ({"image": np.ones(SHAPE) * u.mag}, ValueError, "image must be in a"),
    "image with another unit": (
        {"image": np.ones(SHAPE) * u.adu, "flux": 3 * u.Jy},
        ValueError,
        "flux must be in units of 'adu', got the unit 'Jy'",
    ),
    "image without the unit": ({"flux": 3 * u.Jy}, ValueError, "flux must be without unit"),
    "gain zero": ({"gain": 0}, ValueError, "gain must be a positive number, got 0"),
    "gain negative": ({"gain": -1.5}, ValueError, "gain must be a positive number, got -1.5"),
    "gain NaN": ({"gain": np.nan}, ValueError, "gain must be a positive number, got nan"),
    "gain infinite": ({"gain": np.inf}, ValueError, "gain must be a positive number, got inf"),
    "gain string": ({"gain": "1"}, TypeError, "gain must be a positive number, got '1'"),
    "gain array": ({"gain": [1.0, 2.0]}, TypeError, "gain must be a positive number"),
    "rng string": ({"rng": "a"}, TypeError, "rng must be a numpy.random.Generator"),
    "rng negative": ({"rng": -1}, ValueError, "rng must be a numpy.random.Generator"),
    "rng fraction": ({"rng": 1.5}, TypeError, "rng must be a numpy.random.Generator"),
    "too many electrons": ({"flux": 1e25, "gain": 1.0}, ValueError, "flux times gain must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_STARS)
def test_stars_that_are_refused(backend, case):
    change, kind, message = REFUSED_STARS[case]
    with pytest.raises(kind, match=message):
        gpuphot.render_psf_image(**{**STARS, "shape": SHAPE, "backend": backend, **change})
    with pytest.raises(kind, match=message):
        gpuphot.place_psf_stamps(**{"image": np.ones(SHAPE), **STARS, "backend": backend, **change})


@pytest.mark.parametrize("case", REFUSED_SHAPES)
def test_shapes_that_are_refused(backend, case):
    shape, kind, message = REFUSED_SHAPES[case]
    with pytest.raises(kind, match=message):
        gpuphot.render_psf_image(**STARS, shape=shape, backend=backend)


@pytest.mark.parametrize("case", REFUSED_IMAGES)
def test_images_and_noise_that_are_refused(backend, case):
    change, kind, message = REFUSED_IMAGES[case]
    with pytest.raises(kind, match=message):
        gpuphot.place_psf_stamps(**{"image": np.ones(SHAPE), **STARS, "backend": backend, **change})


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
@pytest.mark.parametrize("on_device", ["x", "y", "flux", "all"])
@pytest.mark.fresh_seed
def test_stars_on_a_device_give_an_image_there(stars, ops, backend, on_device):
    expected = gpuphot.render_psf_image(CONSTANT, *stars, SHAPE, backend=backend)
    given = [
        ops.to_device(values) if on_device in (name, "all") else values
        for name, values in zip(("x", "y", "flux"), stars, strict=True)
    ]
    image = gpuphot.render_psf_image(CONSTANT, *given, SHAPE)
    assert hasattr(image, "__cuda_array_interface__")
    np.testing.assert_array_equal(ops.to_host(image), expected)
    # The image decides where the result is.
    placed = gpuphot.place_psf_stamps(np.ones(SHAPE), CONSTANT, *given)
    assert type(placed) is np.ndarray
    np.testing.assert_array_equal(placed, expected + 1)


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
@pytest.mark.parametrize("gain", [None, 2.0])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i2"])
@pytest.mark.fresh_seed
def test_image_on_a_device_stays_there(rng, stars, ops, backend, gain, dtype):
    sky = rng.normal(10, 3, SHAPE).astype(dtype)
    expected = gpuphot.place_psf_stamps(sky, CONSTANT, *stars, gain, 5, backend=backend)
    given = ops.to_device(sky)
    image = gpuphot.place_psf_stamps(given, CONSTANT, *stars, gain, 5)
    assert hasattr(image, "__cuda_array_interface__")
    np.testing.assert_array_equal(ops.to_host(image), expected)
    np.testing.assert_array_equal(ops.to_host(given), sky)


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
def test_device_arrays_are_refused_by_numpy(ops, backend):
    x = ops.to_device(np.array([20.0, 40.0]))
    with pytest.raises(TypeError, match="lives on a GPU"):
        gpuphot.render_psf_image(**{**STARS, "x": x}, shape=SHAPE, backend="numpy")
