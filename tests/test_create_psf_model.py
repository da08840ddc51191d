"""PSF models made of stars: against stdpipe's, against the truth, and what is refused."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from scipy.special import erf

from gpuphot import PSFModel, create_psf_model
from gpuphot.numpy_backend.stamps import psf_stamps

from .psfs import awkward_positions
from .scenes import FWHM, HEIGHT, SIGMA, WIDTH, add_stars


class Field:
    """Stars on a sky of 0 and their catalogue, with everything that can go wrong."""

    def __init__(self, rng, n=110, shape=(HEIGHT, WIDTH)):
        height, width = shape
        x, y = awkward_positions(rng, n, height, width)
        flux = 10 ** rng.uniform(3, 5, n)
        self.image = rng.normal(0, 2, shape) + np.linspace(0, 8, width)
        add_stars(self.image, x, y, flux)
        self.mask = rng.random(shape) < 0.004
        self.mask[100:106, 100:110] = True
        self.image[self.mask & (rng.random(shape) < 0.5)] = np.nan
        self.image[rng.integers(0, height, 3), rng.integers(0, width, 3)] = np.nan, np.inf, -np.inf
        flux = flux * rng.normal(1, 0.05, n)
        flux[:3] = np.nan, -100, 0
        self.table = Table({"x": x, "y": y, "flux": flux})


@pytest.fixture
def field(rng):
    return Field(rng)


@pytest.fixture
def stars():
    """Enough for the tests that look at messages."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(20, 180, 30), np.arange(20, 180, 30))
    table = Table({"x": x.ravel() + 0.3, "y": y.ravel() - 0.2, "flux": np.full(x.size, 1e4)})
    image = rng.normal(0, 1, (200, 200))
    add_stars(image, table["x"], table["y"], table["flux"])
    return image, table


def reference(*args, **kwargs):
    """The dictionary that stdpipe makes, whatever it warns of."""
    create = pytest.importorskip("stdpipe.psf").create_psf_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create(*args, **kwargs)


def assert_same_model(model, expected, tolerance=1e-9):
    assert model.n_sub == 1
    for key in ("width", "height", "ncoeffs", "sampling", "degree", "fwhm", "x0", "y0", "sx", "sy"):
        assert model[key] == expected[key], key
    peak = expected["data"].max()
    np.testing.assert_allclose(model.planes, expected["data"], rtol=0, atol=tolerance * peak)


# Measured: 2e-14 of the peak.
@pytest.mark.parametrize(
    "options",
    [
        {"degree": 1},
        {"degree": 2},
        {"degree": 3, "oversampling": 3, "size": 16},
        {"degree": 1, "subtract_neighbors": False, "isolation": None},
        {"degree": 1, "isolation": 0.0, "oversampling": 2},
        {"degree": 1, "isolation": 20, "size": 9},
        {"degree": 1, "fwhm": 1.8, "subtract_background": True},
        {"degree": 2, "subtract_background": "plane"},
        {"degree": 1, "subtract_background": "none", "size": 31},
        {"degree": 1, "regularization": 0},
        {"degree": 1, "regularization": 0.3, "oversampling": 4},
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_models_that_vary_are_stdpipes(field, options, masked):
    options = {"fwhm": FWHM, "mask": field.mask if masked else None, **options}
    model = create_psf_model(field.image, field.table, **options)
    assert_same_model(model, reference(field.image, field.table, **options))


def test_neighbours_may_come_from_another_catalogue(field, rng):
    """Those of the full one contaminate the stars of a selected one."""
    rows = np.flatnonzero(field.table["flux"] > 1e4)
    options = {"fwhm": FWHM, "mask": field.mask, "degree": 1, "neighbors_obj": field.table}
    model = create_psf_model(field.image, field.table[rows], **options)
    assert_same_model(model, reference(field.image, field.table[rows], **options))
    alone = create_psf_model(field.image, field.table[rows], **{**options, "neighbors_obj": None})
    assert np.abs(model.planes - alone.planes).max() > 1e-6 * model.planes.max()


def test_outlying_stars_are_rejected(field, rng):
    """As in stdpipe; without rejection, the extended objects would widen the model."""
    rows = rng.integers(0, len(field.table), 6)
    for x, y in zip(field.table["x"][rows], field.table["y"][rows], strict=True):
        row, column = np.indices(field.image.shape)
        field.image += 300 * np.exp(-((column - x) ** 2 + (row - y) ** 2) / 2 / 4**2)
    options = {"fwhm": FWHM, "mask": field.mask, "degree": 1}
    model = create_psf_model(field.image, field.table, **options)
    assert_same_model(model, reference(field.image, field.table, **options))


def test_fluxes_are_optional(field):
    del field.table["flux"]
    options = {"fwhm": FWHM, "mask": field.mask, "degree": 1}
    model = create_psf_model(field.image, field.table, **options)
    assert_same_model(model, reference(field.image, field.table, **options))


@pytest.mark.parametrize("fwhm", [1.7, 3.4])
def test_width_size_and_oversampling_follow_from_the_catalogue(stars, fwhm):
    image, table = stars
    table["fwhm"] = np.linspace(fwhm - 0.1, fwhm + 0.1, len(table))
    model = create_psf_model(image, table, degree=1)
    assert_same_model(model, reference(image, table, degree=1))
    assert model.fwhm == pytest.approx(fwhm)
    assert model.sampling == (0.5 if fwhm < 2.5 else 1)


def test_width_is_3_where_nothing_is_known(stars):
    assert create_psf_model(*stars, degree=1).fwhm == 3


def test_width_may_be_a_callable(stars):
    model = create_psf_model(*stars, degree=1, fwhm=lambda x, y: 3 + 0 * x)
    np.testing.assert_array_equal(model.planes, create_psf_model(*stars, degree=1, fwhm=3.0).planes)


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")
@pytest.mark.parametrize("options", [{"size": 12}, {"oversampling": 2, "isolation": 0}])
def test_constant_models_are_stdpipes(rng, options):
    """Where stdpipe makes one: photutils stumbles over masked pixels that are NaN."""
    field = Field(rng, 50, (170, 190))
    options = {"fwhm": FWHM, "mask": field.mask | ~np.isfinite(field.image), **options}
    image = np.nan_to_num(field.image, posinf=0, neginf=0)
    expected = reference(image, field.table, **options)
    options["mask"] = field.mask
    assert_same_model(create_psf_model(field.image, field.table, **options), expected)


def test_model_of_photutils_may_be_had_instead(stars):
    image, table = stars
    raw = create_psf_model(image, table[:12], get_raw=True)
    assert type(raw).__name__ == "ImagePSF"
    model = create_psf_model(image, table[:12])
    np.testing.assert_array_equal(model.planes, raw.data[None])
    assert isinstance(create_psf_model(image, table, degree=1, get_raw=True), PSFModel)


@pytest.mark.parametrize("dtype", ["f4", ">f4", ">i2", "u2"])
def test_pixels_are_used_in_double_precision(stars, dtype):
    image, table = stars
    image = (image + 100).astype(dtype)
    model = create_psf_model(image, table, degree=1)
    same = create_psf_model(image.astype(np.float64), table, degree=1)
    np.testing.assert_array_equal(model.planes, same.planes)


def pixel_profile(offset):
    """Light of a Gaussian in the pixels of a row."""
    edges = (offset[..., None] + [-0.5, 0.5]) / SIGMA / np.sqrt(2)
    return np.diff(erf(edges), axis=-1)[..., 0] / 2


def true_stamps(x, y, shape):
    rows, columns = (np.arange(n) - n // 2 for n in shape)
    profile_x = pixel_profile(columns - (x - np.rint(x))[:, None])
    profile_y = pixel_profile(rows - (y - np.rint(y))[:, None])
    stamps = profile_y[:, :, None] * profile_x[:, None, :]
    return stamps / stamps.sum(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("oversampling", [1, 2, 3])
def test_stamps_are_the_stars_whatever_the_oversampling(rng, oversampling):
    """The samples contain the pixels. Summed in blocks, stamps would be 5 % too low."""
    n = 80
    x, y = rng.uniform(12, WIDTH - 12, n), rng.uniform(12, HEIGHT - 12, n)
    image = rng.normal(0, 1, (HEIGHT, WIDTH))
    for xi, yi in zip(x, y, strict=True):
        profiles = pixel_profile(np.arange(HEIGHT) - yi), pixel_profile(np.arange(WIDTH) - xi)
        image += 3e4 * np.outer(*profiles)
    table = Table({"x": x, "y": y, "flux": np.full(n, 3e4)})
    options = {"fwhm": FWHM, "oversampling": oversampling, "size": 17}
    model = create_psf_model(image, table, degree=1, **options)
    assert model.has_central_pixel
    x, y = rng.uniform(20, WIDTH - 20, 20), rng.uniform(20, HEIGHT - 20, 20)
    expected = true_stamps(x, y, model.stamp_shape)
    stamps = psf_stamps(model, x, y)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=0.012 * expected.max())


@pytest.mark.parametrize("degree", [0, 1])
def test_stars_are_detected_where_none_are_given(rng, degree):
    n = 150
    x, y = rng.uniform(0, WIDTH, n), rng.uniform(0, HEIGHT, n)
    image = rng.normal(0, 2, (HEIGHT, WIDTH))
    add_stars(image, x, y, 10 ** rng.uniform(3.5, 5, n))
    model = create_psf_model(image, degree=degree)
    assert model.fwhm == pytest.approx(FWHM, rel=0.05)
    options = {"degree": degree, "fwhm": FWHM, "size": 15}
    model, expected = create_psf_model(image, **options), reference(image, **options)
    # Other stars are detected and chosen, of which there are some thirty.
    difference = model.planes - expected["data"]
    assert np.sqrt(np.mean(difference**2)) < 0.01 * expected["data"].max()
    assert_same_model(model, expected, tolerance=0.1)


def test_nothing_detected_is_an_error(rng):
    with pytest.raises(ValueError, match="image must have stars, but none are detected"):
        create_psf_model(rng.normal(0, 1, (100, 100)), degree=1)


@pytest.mark.parametrize("degree", [0, 1])
def test_arguments_are_not_modified(degree):
    field = Field(np.random.default_rng(1), 30, (130, 150))
    image, mask, table = field.image.copy(), field.mask.copy(), field.table.copy()
    for array in (field.image, field.mask):
        array.flags.writeable = False
    options = {"fwhm": FWHM, "mask": field.mask, "neighbors_obj": field.table, "degree": degree}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        create_psf_model(field.image, field.table, subtract_background="plane", **options)
    np.testing.assert_array_equal(field.image, image)
    np.testing.assert_array_equal(field.mask, mask)
    assert field.table.colnames == table.colnames
    for name in table.colnames:
        np.testing.assert_array_equal(field.table[name], table[name])


def test_rows_without_a_position_are_ignored(stars):
    image, table = stars
    expected = create_psf_model(image, table[3:], degree=1).planes
    table["x"][0], table["y"][1] = np.nan, np.inf
    table["x"] = MaskedColumn(table["x"], mask=np.arange(len(table)) == 2)
    np.testing.assert_array_equal(create_psf_model(image, table, degree=1).planes, expected)


def test_masked_fluxes_are_unknown(stars):
    image, table = stars
    table["flux"][:5] = np.nan
    expected = create_psf_model(image, table, degree=1).planes
    table["flux"] = MaskedColumn(np.full(len(table), 1e4), mask=np.arange(len(table)) < 5)
    np.testing.assert_array_equal(create_psf_model(image, table, degree=1).planes, expected)


def test_mask_of_a_masked_image_counts(field):
    options = {"fwhm": FWHM, "degree": 1}
    expected = create_psf_model(field.image, field.table, mask=field.mask, **options)
    image = np.ma.array(field.image, mask=field.mask)
    model = create_psf_model(image, field.table, **options)
    np.testing.assert_array_equal(model.planes, expected.planes)


def test_structured_arrays_are_tables(stars):
    image, table = stars
    expected = create_psf_model(image, table, degree=1).planes
    model = create_psf_model(image, table.as_array(), degree=1)
    np.testing.assert_array_equal(model.planes, expected)


@pytest.mark.parametrize("degree", [0, 1])
def test_messages_go_where_the_caller_wants(stars, degree, capsys):
    image, table = stars
    messages = []
    create_psf_model(image, table[:12], degree=degree, verbose=messages.append)
    assert any("12 stars" in message for message in messages)
    assert capsys.readouterr().out == ""
    create_psf_model(image, table[:12], degree=degree, verbose=True)
    assert "12 stars" in capsys.readouterr().out
    create_psf_model(image, table[:12], degree=degree)
    assert capsys.readouterr().out == ""


def test_constant_models_need_photutils_and_say_so(stars, monkeypatch):
    monkeypatch.setitem(sys.modules, "photutils.psf", None)
    with pytest.raises(ImportError, match="degree=0 is built by the package photutils"):
        create_psf_model(*stars)
    assert create_psf_model(*stars, degree=1).degree == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fwhm": 0}, ValueError, "fwhm must be a positive number, got 0"),
        ({"fwhm": np.nan}, ValueError, "fwhm must be a positive number, got nan"),
        ({"fwhm": "wide"}, TypeError, "fwhm must be a positive number, got 'wide'"),
        ({"size": 1}, ValueError, "size must be an integer of at least 3, got 1"),
        ({"size": 15.5}, TypeError, "size must be an integer of at least 3, got 15.5"),
        (
            {"size": 200},
            ValueError,
            r"size must be at most that of the image, \(200, 200\), got 201",
        ),
        ({"size": 181}, ValueError, r"obj must have .*stars .*size=181"),
        ({"oversampling": 0}, ValueError, "oversampling must be an integer of at least 1, got 0"),
        ({"oversampling": 1.5}, TypeError, "oversampling must be an integer"),
        ({"degree": -1}, ValueError, "degree must be an integer of at least 0, got -1"),
        ({"degree": None}, TypeError, "degree must be an integer of at least 0, got NoneType"),
        ({"regularization": -1}, ValueError, "regularization must not be negative, got -1"),
        ({"regularization": np.nan}, ValueError, "regularization must be a finite number, got nan"),
        ({"isolation": np.nan}, ValueError, "isolation must be a finite number, got nan"),
        ({"isolation": "far"}, TypeError, "isolation must be a number, got 'far'"),
        ({"subtract_background": "all"}, ValueError, "subtract_background must be .* got 'all'"),
        ({"subtract_background": []}, ValueError, r"subtract_background must be .* got \[\]"),
        ({"mask": np.ones((5, 5))}, ValueError, "mask must be a scalar or match the image's"),
        ({"mask": True}, ValueError, r"obj must have .*stars"),
        ({"neighbors_obj": [1]}, TypeError, "neighbors_obj must be an astropy Table.* list"),
        (
            {"neighbors_obj": Table({"x": [1.0], "y": [1.0]})},
            ValueError,
            "neighbors_obj must have columns 'x' and 'y' and 'flux', got only",
        ),
        ({"verbose": False, "obj": [1, 2]}, TypeError, "obj must be an astropy Table.* columns"),
        ({"obj": Table({"x": [1.0]})}, ValueError, "obj must have columns 'x' and 'y', got only"),
        (
            {"obj": Table({"x": ["a"], "y": ["b"]})},
            TypeError,
            "the column 'x' of obj must hold numbers, got <U1",
        ),
        ({"obj": Table({"x": [], "y": []}, dtype=[float] * 2)}, ValueError, "obj must have"),
        (
            {"obj": Table({"x": [50.0], "y": [50.0], "fwhm": [np.nan]})},
            ValueError,
            "fwhm must be given, for the column 'fwhm' of obj has no positive, finite median",
        ),
        ({"image": np.ones(9)}, ValueError, "image must be a 2-D array"),
        ({"image": np.full((200, 200), np.nan)}, ValueError, "obj must have .*stars"),
        ({"image": "sky.fits"}, TypeError, "image must be an array of real numbers"),
    ],
)
@pytest.mark.parametrize("degree", [0, 2])
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")
def test_bad_input_is_named(stars, options, error, message, degree):
    image, table = stars
    arguments = {"image": image, "obj": table, "degree": degree, **options}
    with pytest.raises(error, match=message):
        create_psf_model(**arguments)


def test_too_few_stars_are_counted(stars):
    image, table = stars
    with pytest.raises(ValueError, match="at least 6 usable stars for degree=2, got 5"):
        create_psf_model(image, table[:5], degree=2)
    image[: HEIGHT // 4] = np.nan
    with pytest.raises(ValueError, match="at least 28 usable stars for degree=6, got 24"):
        create_psf_model(image, table, degree=6)
