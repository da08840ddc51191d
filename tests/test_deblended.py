"""measure_aperture_deblended: what it promises beyond the numbers of the reference."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from astropy.table import Column, MaskedColumn

import gpuphot
from gpuphot.measure.results import META_KEY
from gpuphot.models.sep import SepFlag
from gpuphot.numpy_backend.render import render_psf_image

from .psfs import make_psf, model_of, write_psf_file

SHAPE = 60, 80
R = 3.0
PSF = make_psf(25, 25, 1.0, 0)
X, Y = np.array([20.3, 24.1, 50.0, 61.7]), np.array([30.2, 31.0, 25.5, 40.4])
TOTAL = np.array([5000.0, 8000.0, 3000.0, 6000.0])
KNOWN = {"flux_seed": TOTAL / 1.25, "flux_psf": TOTAL, "flux_psf_err": TOTAL / 100}
BAD = 0x1000
COLUMNS = ["x", "y", "flux", "fluxerr", "flags", "mag", "magerr"]
DIAGNOSTICS = [
    "flux_ap_raw", "flux_model", "flux_total_model", "flux_ratio_model", "self_frac",
    "flux_neighbour_err", "fracflux",
]  # fmt: skip


def image_of(x=X, y=Y, total=TOTAL, psf=PSF):
    return render_psf_image(SHAPE, model_of(psf), x, y, total)


IMAGE = image_of()


@functools.cache
def enclosed():
    """Share of each star's light in its own aperture."""
    return np.array(
        [
            measure(
                "numpy", x=X[[i]], y=Y[[i]], **dict.fromkeys(KNOWN, TOTAL[[i]]), diagnostics=True
            )["self_frac"][0]
            for i in range(len(X))
        ]
    )


def measure(backend, image=IMAGE, x=X, y=Y, aper=R, psf=PSF, **options):
    return gpuphot.measure_aperture_deblended(
        image, x, y, aper, psf, **(KNOWN | options), backend=backend
    )


def test_stars_get_their_own_light(backend):
    """From an image without noise, to the single precision of SEP's pixels."""
    result = measure(backend, err=3.0, diagnostics=True)
    assert result.colnames == COLUMNS + DIAGNOSTICS
    np.testing.assert_allclose(result["flux"], TOTAL * enclosed(), rtol=1e-6)
    assert not result["flags"].any()
    np.testing.assert_allclose(result["flux_ratio_model"], 1.25, rtol=1e-12)
    np.testing.assert_allclose(result["mag"], -2.5 * np.log10(result["flux"]), rtol=1e-14)
    assert (result["flux_ap_raw"] - result["flux"])[:2].min() > 50
    assert result["flux_neighbour_err"][0] > 1
    assert result["flux_neighbour_err"][2] == 0


def test_share_of_the_light_tells_who_is_crowded(backend):
    result = measure(backend, diagnostics=True, propagate_neighbour_errors=False)
    assert result.colnames == COLUMNS + [name for name in DIAGNOSTICS if "neighbour" not in name]
    assert result["fracflux"][2] == 1
    assert np.all(result["fracflux"][:2] < 0.99)
    own = result["flux_total_model"] * result["self_frac"]
    np.testing.assert_allclose(result["fracflux"], own / result["flux_model"], atol=1e-2)


def test_table_says_what_its_columns_are(backend):
    result = measure(backend, diagnostics=True)
    assert all(column.description for column in result.itercols())
    assert result["flags"].dtype == np.int64
    assert all(result[name].dtype == float for name in result.colnames if name != "flags")
    meta = json.loads(result.meta[META_KEY])
    assert meta["function"] == "measure_aperture_deblended"
    assert meta["parameters"]["aper"] == R


def test_row_without_position_costs_nobody_else_anything(backend):
    expected = measure(backend, err=3.0)
    with_nan = {
        "x": np.append(X, [np.nan, 22.0, np.inf]),
        "y": np.append(Y, [31.0, np.nan, 2.0]),
        "flux_seed": np.append(TOTAL / 1.25, [4e3] * 3),
        "flux_psf": np.append(TOTAL, [5e3] * 3),
        "flux_psf_err": np.append(TOTAL / 100, [50.0] * 3),
    }
    for correction in ("ratio_field", "fixed"):
        result = measure(backend, err=3.0, aperture_correction=correction, **with_nan)
        for name in COLUMNS:
            np.testing.assert_array_equal(result[name][:4], expected[name])
        assert np.isnan(result["flux"][4:]).all()
        assert np.isnan(result["mag"][4:]).all()
        assert np.all(result["flags"][4:] == BAD)


def test_masked_position_is_none(backend):
    x = MaskedColumn(X, mask=[False, True, False, False])
    result = measure(backend, x=x)
    assert np.isnan(result["flux"][1])
    assert result["flags"][1] == BAD
    assert result["flux"][0] > measure(backend)["flux"][0] + 50  # of the neighbour, now unknown


@pytest.mark.parametrize("how", ["mask", "NaN", "numpy.ma"])
def test_masked_pixels_do_not_bias(backend, how):
    """The sums of the image and of the model are scaled up for the same pixels."""
    image, mask = IMAGE.copy(), np.zeros(SHAPE, bool)
    mask[30, 19] = mask[29, 20] = mask[26, 50] = True
    options = {}
    if how == "NaN":
        image[mask] = np.nan
    elif how == "numpy.ma":
        image[mask] = 1e6
        image = np.ma.MaskedArray(image, mask)
    else:
        image[mask] = 1e6
        options["mask"] = mask
    result = measure(backend, image=image, **options)
    np.testing.assert_allclose(result["flux"], TOTAL * enclosed(), rtol=1e-6)
    assert result["flags"].tolist() == [BAD | SepFlag.HAS_MASKED, 0, BAD | SepFlag.HAS_MASKED, 0]
    assert np.isnan(result["mag"][[0, 2]]).all()


def test_nothing_is_made_up(backend):
    """Apertures without a pixel, and stars whose light is not known, have no flux."""
    mask = np.zeros(SHAPE, bool)
    mask[20:32, 44:57] = True
    x, y = X.copy(), Y.copy()
    x[3] = 300.0
    seed = np.array([np.nan, TOTAL[1], TOTAL[2], TOTAL[3]])
    result = measure(backend, x=x, y=y, mask=mask, flux_seed=seed)
    assert np.isnan(result["flux"][[0, 2, 3]]).all()
    assert np.isfinite(result["flux"][1])
    assert np.all(result["flags"][[0, 2, 3]] & BAD)
    assert result["flags"][2] & SepFlag.ALL_MASKED


@pytest.mark.parametrize("useless", [0.0, -5.0, np.nan, np.inf])
def test_star_without_a_seed_is_no_neighbour(backend, useless):
    seeds = np.array([TOTAL[0] / 1.25, useless, TOTAL[2] / 1.25, TOTAL[3] / 1.25])
    result = measure(backend, flux_seed=seeds, diagnostics=True)
    assert np.isnan(result["flux"][1])
    assert result["flags"][1] == BAD
    assert result["fracflux"][0] == 1
    assert result["flux_neighbour_err"][0] == 0


def test_background_that_is_no_number_gives_no_flux(backend):
    bg = np.zeros(SHAPE)
    bg[25, 50] = np.inf
    result = measure(backend, bg=bg)
    assert np.isnan(result["flux"]).tolist() == [False, False, True, False]
    assert result["flags"].tolist() == [0, 0, BAD, 0]


def test_targets(backend):
    every = measure(backend, err=2.0, diagnostics=True)
    for target in (
        [2, 0, 0, -1],
        np.array([1], np.uint8),
        np.array([True, False, True, False]),
        [],
    ):
        result = measure(backend, err=2.0, diagnostics=True, target=target)
        rows = np.asarray(target if len(target) else np.zeros(0, int))
        for name in every.colnames:
            np.testing.assert_array_equal(result[name], every[name][rows], name)


def test_no_stars(backend):
    none = np.zeros(0)
    result = measure(
        backend, x=none, y=none, flux_seed=none, flux_psf=none, flux_psf_err=none, diagnostics=True
    )
    assert len(result) == 0
    assert result.colnames == COLUMNS + DIAGNOSTICS


def test_psf_may_come_in_many_forms(backend, tmp_path):
    expected = measure(backend)["flux"]
    np.testing.assert_array_equal(measure(backend, psf=model_of(PSF))["flux"], expected)
    path = write_psf_file(tmp_path / "model.psf", PSF)
    np.testing.assert_array_equal(measure(backend, psf=path)["flux"], expected)
    gaussian = measure(backend, image=image_of(psf=3.0), psf=3.0, diagnostics=True)
    np.testing.assert_allclose(gaussian["flux"], TOTAL * gaussian["self_frac"], rtol=2e-3)
    epsf = pytest.importorskip("photutils.psf").ImagePSF(np.asarray(PSF["data"][0], float))
    np.testing.assert_allclose(measure(backend, psf=epsf)["flux"], expected, rtol=1e-6)


def test_caller_keeps_his_data(backend):
    mask = np.zeros(SHAPE, bool)
    arrays = {
        "image": IMAGE.copy(), "x": X.copy(), "y": Y.copy(), "flux_seed": TOTAL / 1.25,
        "flux_psf": TOTAL.copy(), "flux_psf_err": TOTAL / 100, "mask": mask,
        "bg": np.ones(SHAPE), "err": np.full(SHAPE, 2.0),
    }  # fmt: skip
    copies = {name: values.copy() for name, values in arrays.items()}
    for values in arrays.values():
        values.flags.writeable = False
    measure(backend, **arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, copies[name], name)


def test_numbers_of_any_kind(backend):
    expected = measure(backend, image=np.rint(IMAGE), bg=3.0, flux_seed=np.rint(TOTAL))
    result = measure(
        backend,
        image=np.rint(IMAGE).astype(">i2"),
        bg=np.full(SHAPE, 3, ">f4"),
        x=list(X),
        y=Column(Y),
        flux_seed=TOTAL.astype(int),
    )
    for name in COLUMNS:
        np.testing.assert_array_equal(result[name], expected[name])


def test_positions_off_any_image_do_not_distort_the_field(backend):
    expected = measure(backend, min_for_field_fit=3)
    known = {name: np.append(values, [1e3, 1.9e3]) for name, values in KNOWN.items()}
    far = {"x": np.append(X, [-999.0, 1e30]), "y": np.append(Y, [-999.0, 5.0])}
    result = measure(backend, min_for_field_fit=3, **far, **known)
    for name in COLUMNS:
        np.testing.assert_array_equal(result[name][:4], expected[name])


@pytest.mark.parametrize("correction", ["ratio_field", "fixed"])
@pytest.mark.fresh_seed
def test_permuted_stars_give_permuted_results(backend, correction, rng):
    n = 120
    x, y = rng.uniform(-5, SHAPE[1] + 5, n), rng.uniform(-5, SHAPE[0] + 5, n)
    x[:10], y[10:20] = np.rint(x[:10]), np.rint(y[10:20])
    total = rng.uniform(100, 5000, n)
    image = image_of(x, y, total) + rng.normal(0, 1, SHAPE)
    seed, fitted, error = total / rng.normal(1.2, 0.05, n), total, rng.uniform(1, 9, n)
    order = rng.permutation(n)
    known = {"flux_seed": seed, "flux_psf": fitted, "flux_psf_err": error}
    options = {"aperture_correction": correction, "diagnostics": True, "err": 1.0}
    result = measure(backend, image, x, y, **known, **options)
    permuted = {name: values[order] for name, values in known.items()}
    again = measure(backend, image, x[order], y[order], **permuted, **options)
    for name in result.colnames:
        np.testing.assert_array_equal(result[name][order], again[name], name)


def test_messages_say_what_is_done(backend):
    lines = []
    measure(backend, verbose=lines.append, target=[1, 2])
    assert "2 of 4 stars" in lines[0]
    assert "too few" in lines[1]


BAD_INPUT = {
    "x shape": ({"x": X[:3]}, ValueError, "y must be a 1-D array of 3 numbers"),
    "x scalar": ({"x": 3.0}, ValueError, "x must be a 1-D array"),
    "x 2-D": ({"x": X[None]}, ValueError, "x must be a 1-D array"),
    "x strings": ({"x": ["a"] * 4}, TypeError, "x must be an array of real numbers"),
    "seeds": ({"flux_seed": TOTAL[:2]}, ValueError, "flux_seed must be a 1-D array of 4"),
    "scalar seed": ({"flux_seed": 5.0}, ValueError, "flux_seed must be a 1-D array of 4"),
    "complex": ({"flux_psf": TOTAL * 1j}, TypeError, "flux_psf must be an array of real"),
    "no errors": ({"flux_psf_err": None}, ValueError, "flux_psf_err must be given"),
    "errors": ({"flux_psf_err": TOTAL[:1]}, ValueError, "flux_psf_err must be a 1-D array of 4"),
    "target": ({"target": [4]}, ValueError, "target must hold rows of the 4 sources, got 4"),
    "target below": ({"target": [-5]}, ValueError, "target must hold rows of the 4"),
    "target mask": ({"target": [True]}, ValueError, "target must have 4 booleans"),
    "target float": ({"target": [1.0]}, TypeError, "target must be a 1-D array"),
    "target scalar": ({"target": 1}, TypeError, "target must be a 1-D array"),
    "target word": ({"target": "all"}, TypeError, "row numbers, got 'all'"),
    "psf": ({"psf": None}, TypeError, "psf must be a PSFModel"),
    "psf entries": ({"psf": {"data": 1}}, ValueError, r"psf"),
    "correction": ({"aperture_correction": "fix"}, ValueError, "aperture_correction must be one"),
    "no correction": ({"aperture_correction": None}, ValueError, "aperture_correction must be"),
    "kwargs": ({"correction_field_kwargs": 3}, TypeError, "correction_field_kwargs must be"),
    "key": ({"correction_field_kwargs": {"kk": 3}}, ValueError, "correction_field_kwargs must"),
    "method": ({"correction_field_kwargs": {"backend": "rbf"}}, ValueError, "must be one of"),
    "k": ({"correction_field_kwargs": {"k": 0}}, ValueError, r"correction_field_kwargs\['k'\]"),
    "scales": ({"correction_field_kwargs": {"scales": (1, 0)}}, ValueError, r"\['scales'\]"),
    "kernel": ({"correction_field_kwargs": {"kernel": "x"}}, ValueError, r"\['kernel'\]"),
    "grid key": (
        {"correction_field_kwargs": {"backend": "grid", "robust_c": 3}}, ValueError, "robust_c",
    ),
    "grid": (
        {"correction_field_kwargs": {"backend": "grid", "grid_shape": 4}}, ValueError, "grid_shape",
    ),
    "clip": ({"ratio_clip": (3, 0.5)}, ValueError, "ratio_clip must be"),
    "no clip": ({"ratio_clip": None}, ValueError, "ratio_clip must be"),
    "outliers": ({"outlier_clip": 0}, ValueError, "outlier_clip must be"),
    "minimum": ({"min_for_field_fit": 0}, ValueError, "min_for_field_fit must be"),
    "flag": ({"bad_flag": -1}, ValueError, "bad_flag must be"),
    "sub-pixels": ({"overlap_subpixel": 0}, ValueError, "overlap_subpixel must be"),
    "sub-pixel": ({"overlap_subpixel": 4.7}, TypeError, "overlap_subpixel must be"),
    "aper": ({"aper": 0}, ValueError, "aper must be"),
    "aper NaN": ({"aper": np.nan}, ValueError, "aper must be"),
    "aper array": ({"aper": [3, 4]}, TypeError, "aper must be"),
    "fwhm": ({"fwhm": 0}, ValueError, "fwhm must be"),
    "err": ({"err": np.ones(3)}, ValueError, "err must be"),
    "mask": ({"mask": np.ones((3, 3))}, ValueError, "mask must be"),
    "gain": ({"gain": -1}, ValueError, "gain must be"),
    "image": ({"image": np.ones((3, 4, 5))}, ValueError, "image must be a 2-D array"),
    "backend": ({"backend": "torch"}, ValueError, "backend must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_a_clear_error(case):
    changes, error, message = BAD_INPUT[case]
    arguments = {"backend": "numpy"} | changes
    with pytest.raises(error, match=message):
        measure(**arguments)


def test_psf_without_a_central_pixel_is_refused(backend):
    """The reference puts such stars half a pixel beside their positions."""
    with pytest.raises(ValueError, match="odd number of rows"):
        measure(backend, psf=make_psf(52, 52, 0.5, 0))


def test_useless_single_rows_harm_nobody(backend):
    """Whatever a row holds, the others have their values."""
    expected = measure(backend, err=3.0)
    worst = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0, 1e-300])
    n = len(worst)
    for name in ("x", "y", "flux_seed", "flux_psf", "flux_psf_err"):
        far = {
            "x": np.full(n, 70.0), "y": np.full(n, 8.0), "flux_seed": np.full(n, 80.0),
            "flux_psf": np.full(n, 100.0), "flux_psf_err": np.full(n, 1.0),
        }  # fmt: skip
        far[name] = worst
        known = {"x": X, "y": Y, **KNOWN}
        both = {key: np.concatenate([known[key], far[key]]) for key in known}
        with np.errstate(all="ignore"):
            result = measure(
                backend, err=3.0, aperture_correction="fixed", target=np.arange(4), **both
            )
        np.testing.assert_allclose(result["flux"], expected["flux"], rtol=1e-6, err_msg=name)
