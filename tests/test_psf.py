"""The PSF model: what it is made of, and what it refuses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.nddata import NDData

from gpuphot.models.psf import PSFModel, as_psf_model, spline_coefficients
from gpuphot.numpy_backend.stamps import psf_stamps

from .psfs import DATA, MADE_UP, REAL, load_psf, make_psf, stdpipe_stamps, write_psf_file


@pytest.fixture
def psf():
    return make_psf(25, 25, 0.9, 2)


@pytest.mark.parametrize("name", [*MADE_UP, *REAL])
def test_stamp_shape_is_stdpipes(name):
    psf = load_psf(name)
    model = PSFModel.from_psfex_dict(psf)
    assert model.stamp_shape == stdpipe_stamps(psf, [100.2], [90.4]).shape[1:]


def test_weights_are_the_terms_of_the_polynomial(psf):
    weights = PSFModel.from_psfex_dict(psf).weights(np.array([150.0, 300.0]), np.array([120, 380]))
    np.testing.assert_allclose(weights, [[1, 0, 0, 0, 0, 0], [1, 1, 1, 2, 2, 4]])


def test_model_is_a_copy_that_cannot_be_changed(psf):
    model = PSFModel.from_psfex_dict(psf)
    psf["data"][0] = 0
    assert model.planes[0].max() > 0
    assert model.planes.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        model.planes[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.degree = 1


def test_what_is_optional_may_be_missing():
    psf = {"data": np.ones((5, 7), ">f4"), "sampling": 1}
    model = PSFModel.from_psfex_dict(psf)
    assert (model.degree, model.width, model.height, model.stamp_shape) == (0, 7, 5, (5, 7))
    assert np.isnan(model.fwhm)


def test_spline_goes_through_the_planes():
    planes = np.random.default_rng(1).normal(size=(2, 6, 9))
    nodes = spline_coefficients(planes)
    assert nodes.shape == (2, 9, 12)
    rows = (nodes[:, :-2] + 4 * nodes[:, 1:-1] + nodes[:, 2:]) / 6
    values = (rows[..., :-2] + 4 * rows[..., 1:-1] + rows[..., 2:]) / 6
    np.testing.assert_allclose(values[:, :6, :9], planes, atol=1e-14)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", None, "must have an entry 'data', got"),
        ("data", np.ones((3, 5, 5)), r"shape \(6, h, w\) for degree 2, got shape \(3, 5, 5\)"),
        ("data", np.ones(5), r"got shape \(5,\)"),
        ("data", np.full((6, 5, 5), np.nan), "'data'.* must hold finite numbers"),
        ("data", np.full((6, 5, 5), "a"), "'data'.* must hold numbers, got <U1"),
        ("degree", -1, "'degree'.* must be an integer of at least 0, got -1"),
        ("degree", 1.5, "'degree'.* must be an integer of at least 0, got 1.5"),
        ("ncoeffs", 3, "'ncoeffs'.* must be 6 for degree 2, got 3"),
        ("sampling", None, "must have an entry 'sampling'"),
        ("sampling", 0, "'sampling'.* must be positive, got 0"),
        ("sampling", np.nan, "'sampling'.* must be a finite number, got nan"),
        ("x0", None, "must have an entry 'x0'"),
        ("x0", "left", "'x0'.* must be a finite number, got 'left'"),
        ("sx", 0, "'sx'.* must not be 0"),
        ("width", 0, "'width'.* must be an integer of at least 1, got 0"),
        ("fwhm", "wide", "'fwhm'.* must be a finite number, got 'wide'"),
        ("fwhm", 0, "'fwhm'.* must be positive, got 0"),
        ("fwhm", -2.5, "'fwhm'.* must be positive, got -2.5"),
    ],
)
def test_error_names_the_entry_and_what_came(psf, key, value, message):
    psf[key] = value
    with pytest.raises(ValueError, match=message):
        PSFModel.from_psfex_dict(psf)


@pytest.mark.parametrize("fwhm", [0, -1.0, np.nan, np.inf])
def test_fwhm_of_a_gaussian_is_positive(fwhm):
    with pytest.raises(ValueError, match=f"must be a positive number, got {fwhm}"):
        PSFModel.gaussian(fwhm)


def test_broken_file_is_refused():
    path = DATA / "des_psf" / "invalid_psfcat.psf"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    psf = pytest.importorskip("stdpipe.psf").load_psf(path)
    with pytest.raises(ValueError, match=r"ncoeffs.* must be 6 for degree 2, got 3"):
        PSFModel.from_psfex_dict(psf)


# The mapping


def test_model_can_be_read_as_the_dictionary_it_was_made_of(psf):
    model = PSFModel.from_psfex_dict(psf)
    assert set(model) == set(psf)
    assert len(model) == len(psf)
    for key in set(psf) - {"data"}:
        assert model[key] == psf[key]
        assert key in model
    np.testing.assert_array_equal(model["data"], psf["data"])
    assert model.get("header") is None
    with pytest.raises(KeyError, match="header"):
        model["header"]
    again = PSFModel.from_psfex_dict(dict(model))
    assert {key: again[key] for key in set(psf) - {"data"}} == {
        key: model[key] for key in set(psf) - {"data"}
    }


def test_stdpipe_can_read_a_model(psf):
    """Its functions for dictionaries take the model as it is."""
    reference = pytest.importorskip("stdpipe.psf")
    psf["data"] = psf["data"].astype(float)
    stamp = reference.get_psf_stamp(PSFModel.from_psfex_dict(psf), 70.3, 40.8)
    expected = reference.get_psf_stamp(psf, 70.3, 40.8)
    np.testing.assert_allclose(stamp, expected, rtol=0, atol=1e-14 * expected.max())


def test_entries_that_a_model_does_not_have_are_missing():
    assert dict(PSFModel.gaussian(3.5)) == {"width": 23, "height": 23, "sampling": 1, "fwhm": 3.5}
    nameless = PSFModel.from_psfex_dict({"data": np.ones((5, 7)), "sampling": 1})
    assert "fwhm" not in nameless
    gridded = as_psf_model(gridded_model([0, 9], [0, 9]))
    assert set(gridded) == {"width", "height", "sampling", "data"}


def test_mapping_is_read_only(psf):
    model = PSFModel.from_psfex_dict(psf)
    with pytest.raises(TypeError, match="assignment"):
        model["degree"] = 1


def test_model_equals_only_itself(psf):
    """Models are keys of caches, whatever they hold."""
    model, twin = PSFModel.from_psfex_dict(psf), PSFModel.from_psfex_dict(psf)
    assert model == model
    assert model != twin
    assert model != dict(model)
    assert len({model, twin, model}) == 2


def test_representation_is_short(psf):
    assert len(repr(PSFModel.from_psfex_dict(psf))) < 200


# The stamps


@pytest.mark.parametrize(
    ("shape", "sampling", "n_sub"),
    [
        ((25, 25), 1.0, 1),
        ((52, 48), 0.5, 2),
        ((51, 48), 0.5, 1),
        ((45, 39), 0.3331, 3),
        ((45, 39), 0.332, 1),
        ((45, 45), 0.53, 1),
        ((15, 15), 1.7, 1),
    ],
)
def test_stamps_are_block_sums_where_blocks_fill_the_planes(shape, sampling, n_sub):
    psf = {"data": np.ones(shape), "sampling": sampling}
    assert PSFModel.from_psfex_dict(psf).n_sub == n_sub


@pytest.mark.parametrize(
    ("shape", "sampling", "central"),
    [
        ((25, 25), 1.0, True),
        ((24, 24), 1.0, True),  # interpolated on 25 x 25 pixels
        ((50, 54), 0.5, True),
        ((52, 54), 0.5, False),
        ((54, 52), 0.5, False),
    ],
)
def test_model_tells_whether_stamps_have_a_central_pixel(shape, sampling, central):
    model = PSFModel.from_psfex_dict({"data": np.ones(shape), "sampling": sampling})
    assert model.has_central_pixel is central


def test_stamps_of_gaussians_have_a_central_pixel():
    assert all(PSFModel.gaussian(fwhm).has_central_pixel for fwhm in (0.2, 1, 3.3, 7))


# Whatever may stand for a PSF


def test_everything_that_stands_for_a_psf_is_accepted(tmp_path, psf):
    model = PSFModel.from_psfex_dict(psf)
    assert as_psf_model(model) is model
    path = write_psf_file(tmp_path / "some.psf", psf)
    for same in (psf, path, str(path)):
        np.testing.assert_array_equal(as_psf_model(same).planes, model.planes)
    for fwhm in (3, 3.0, np.float32(3), np.int16(3)):
        gaussian = as_psf_model(fwhm)
        assert (gaussian.planes, gaussian.fwhm, gaussian.stamp_shape) == (None, 3.0, (19, 19))


@pytest.mark.parametrize("psf", [None, True, [3.5], np.ones((5, 5)), 3j, object(), lambda x, y: 3])
def test_anything_else_is_refused(psf):
    expected = rf"psf must be a PSFModel, .* or GriddedPSFModel .*, got {type(psf).__name__}"
    with pytest.raises(TypeError, match=expected):
        as_psf_model(psf)


@pytest.mark.parametrize("psf", [0.0, -3, np.nan, {}, {"data": np.ones((5, 5)), "sampling": -1}])
def test_values_that_cannot_be_are_refused(psf):
    with pytest.raises(ValueError, match="psf"):
        as_psf_model(psf)


# Models of photutils


def star_plane(shape=(61, 65), sampling=0.5, sigma=1.5, shift=0.0):
    """A star that has no light at the edges, but for its asymmetry."""
    row, column = np.indices(shape) - np.array([shape[0] - 1, shape[1] - 1])[:, None, None] / 2
    r2 = (column - shift) ** 2 + (row + 2 * shift) ** 2 + 0.3 * row * column
    return np.exp(-r2 * sampling**2 / 2 / sigma**2)


def image_model(data, **attributes):
    psf = pytest.importorskip("photutils.psf")
    return psf.ImagePSF(data, **attributes)


def gridded_model(grid_x, grid_y, rng=None, oversampling=2):
    """A grid of different stars, in any order."""
    psf = pytest.importorskip("photutils.psf")
    positions = np.array([(x, y) for x in grid_x for y in grid_y], dtype=float)
    rng = np.random.default_rng(0) if rng is None else rng
    positions = rng.permutation(positions)
    data = np.array([star_plane(shift=rng.normal(), sigma=rng.uniform(1, 1.6)) for _ in positions])
    return psf.GriddedPSFModel(
        NDData(data, meta={"grid_xypos": positions, "oversampling": oversampling})
    )


def photutils_stamps(model, x, y, shape):
    """The model's own values on the pixels around positions, scaled to a sum of 1."""
    stamps = np.empty((len(x), *shape))
    rows, columns = np.indices(shape)
    for k, (xk, yk) in enumerate(zip(x, y, strict=True)):
        at_x = columns - shape[1] // 2 + np.rint(xk)
        at_y = rows - shape[0] // 2 + np.rint(yk)
        stamps[k] = model.evaluate(at_x, at_y, 1, xk, yk)
    return stamps / stamps.sum(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("oversampling", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(61, 65), (60, 72)])
def test_stamps_of_image_models_are_photutils(rng, oversampling, shape):
    """Both are cubic splines; at the edges, where they differ, there is no light."""
    image = image_model(star_plane(shape), oversampling=oversampling)
    model = as_psf_model(image)
    assert (model.n_sub, model.sampling) == (1, 1 / oversampling)
    assert (model.height, model.width) == shape
    assert model.has_central_pixel
    x, y = rng.uniform(0, 300, 20), rng.uniform(0, 240, 20)
    stamps = psf_stamps(model, x, y)
    expected = photutils_stamps(image, x, y, model.stamp_shape)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-11 * expected.max())


def test_stamps_of_gridded_models_are_photutils(rng):
    """Within the grid, beyond it, and on its nodes."""
    grid_x, grid_y = np.cumsum(rng.uniform(20, 90, 4)), np.cumsum(rng.uniform(20, 90, 3))
    gridded = gridded_model(grid_x, grid_y, rng)
    model = as_psf_model(gridded)
    np.testing.assert_array_equal(model.grid_x, grid_x)
    np.testing.assert_array_equal(model.grid_y, grid_y)
    x, y = rng.uniform(-30, 400, 40), rng.uniform(-30, 300, 40)
    x[:4], y[2:5] = grid_x, grid_y
    stamps = psf_stamps(model, x, y)
    expected = photutils_stamps(gridded, x, y, model.stamp_shape)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-11 * expected.max())


def test_planes_of_a_grid_are_sorted_by_rows(rng):
    gridded = gridded_model([5, 100, 130], [20, 70], rng)
    model = as_psf_model(gridded)
    for iy, y in enumerate(model.grid_y):
        for ix, x in enumerate(model.grid_x):
            (source,) = np.flatnonzero((gridded.grid_xypos == (x, y)).all(axis=1))
            np.testing.assert_array_equal(model.planes[iy * 3 + ix], gridded.data[source])


def test_weights_of_a_grid_are_bilinear():
    model = as_psf_model(gridded_model([0, 10, 30], [0, 20]))
    x, y = np.array([0.0, 5, 15, 30, -7, 99]), np.array([0.0, 5, 10, 20, -7, 5])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [0.375, 0.375, 0, 0.125, 0.125, 0],
        [0, 0.375, 0.125, 0, 0.375, 0.125],
        [0, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0.75, 0, 0, 0.25],
    ]
    np.testing.assert_allclose(model.weights(x, y), expected, atol=1e-15)


def test_grid_of_one_node_is_constant():
    gridded = gridded_model([40], [30])
    model = as_psf_model(gridded)
    assert (model.grid_x.tolist(), model.grid_y.tolist()) == ([40], [30])
    x, y = np.array([5.2, 40, 300]), np.array([7.7, 30, 100])
    np.testing.assert_array_equal(model.weights(x, y), np.ones((3, 1)))
    expected = photutils_stamps(gridded, x, y, model.stamp_shape)
    stamps = psf_stamps(model, x, y)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-11 * expected.max())


def test_gridded_model_is_a_copy_that_cannot_be_changed():
    gridded = gridded_model([0, 10], [0, 10])
    model = as_psf_model(gridded)
    gridded.data[0] = 0
    assert (model.planes.max(axis=(1, 2)) > 0).all()
    for array in (model.planes, model.grid_x, model.grid_y):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_photutils_is_not_needed_to_read_its_models():
    code = (
        "import sys; sys.modules['photutils'] = None\n"
        "import numpy as np; from types import SimpleNamespace\n"
        "from gpuphot.models.psf import as_psf_model\n"
        "model = SimpleNamespace(data=np.ones((9, 9)), oversampling=np.array([2, 2]))\n"
        "print(as_psf_model(model).stamp_shape)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "(5, 5)", answer.stderr


def test_origin_of_older_models_is_in_image_pixels():
    """EPSFModel, which photutils had before version 3, divides it by the oversampling."""
    older = SimpleNamespace(data=star_plane((25, 29)), oversampling=2, norm_radius=5.5)
    assert as_psf_model(SimpleNamespace(origin=(7, 6), **vars(older))).sampling == 0.5
    with pytest.raises(ValueError, match=r"must be the centre of psf.data, \(7.0, 6.0\)"):
        as_psf_model(SimpleNamespace(origin=(14, 12), **vars(older)))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"oversampling": (2, 3)}, r"psf.oversampling must be .* the same in x and y, got"),
        ({"origin": (32.0, 29.0)}, r"psf.origin must be the centre .*\(32.0, 30.0\), got"),
    ],
)
def test_image_models_that_cannot_be_represented_are_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        as_psf_model(image_model(star_plane(), **attributes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.ones((2, 5, 5))}, r"psf.data must be one plane, got shape \(2, 5, 5\)"),
        ({"data": np.full((5, 5), np.nan)}, r"psf.data must hold finite numbers"),
        ({"data": np.ones(5)}, r"psf.data must be planes .*, got shape \(5,\)"),
        ({"oversampling": 0}, r"psf.oversampling must be a positive number, .* got 0"),
        ({"oversampling": np.nan}, r"psf.oversampling must be a positive number, .* got nan"),
        ({"oversampling": (2, 2, 2)}, r"psf.oversampling must be a positive number"),
        ({"oversampling": "fine"}, r"psf.oversampling must be a positive number"),
        ({"origin": (1, 2, 3)}, r"psf.origin must be the centre"),
    ],
)
def test_attributes_that_cannot_be_are_refused(changes, message):
    model = SimpleNamespace(**{"data": np.ones((5, 5)), "oversampling": 1, **changes})
    with pytest.raises(ValueError, match=message):
        as_psf_model(model)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(0, 0), (1, 0), (0, 1), (2, 1)], "4 positions with 3 different x and 2 different y"),
        ([(0, 0), (1, 0), (0, 1), (0, 1)], "4 positions with 2 different x and 2 different y"),
        ([(0, 0), (1, 0), (0, 1)], r"4 finite positions .* got shape \(3, 2\)"),
        ([(0, 0), (1, 0), (0, 1), (1, np.nan)], "4 finite positions"),
    ],
)
def test_grid_that_is_no_rectangle_is_refused(positions, message):
    model = SimpleNamespace(data=np.ones((4, 5, 5)), oversampling=1, grid_xypos=positions)
    with pytest.raises(ValueError, match=rf"psf.grid_xypos must .*{message}"):
        as_psf_model(model)
