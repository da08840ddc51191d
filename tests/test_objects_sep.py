"""measure_objects_sep: what users meet that the reference does not do, or not well."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

import gpuphot
from gpuphot import Flag
from gpuphot.measure.results import META_KEY

from . import truth
from .psfs import make_psf
from .scenes import add_stars

SHAPE = (60, 70)
STARS = np.random.default_rng(0).normal(100, 3, SHAPE)
X, Y, FLUX = np.array([20.0, 40.0, 44.5]), np.array([30.0, 25.5, 27.0]), np.array([4e3, 6e3, 9e3])
add_stars(STARS, X, Y, FLUX)
PSF = make_psf(25, 25, 0.5, 0)
NAN = np.full(SHAPE, np.nan)


def table():
    return Table({"x": X, "y": Y})


def measure(backend, obj=None, image=STARS, **options):
    obj = table() if obj is None else obj
    return gpuphot.measure_objects_sep(obj, image, backend=backend, **options)


MODES = {
    "aperture": {},
    "annulus": {"bkgann": (7, 12)},
    "optimal": {"optimal": True, "fwhm": 3.0, "aper": 1.0, "bkgann": (2.5, 4.0)},
    "single": {"optimal": True, "fwhm": 3.0, "aper": 1.0, "group_sources": False},
    "psf": {"psf": PSF},
    "single psf": {"psf": PSF, "group_sources": False},
    "centroid": {"centroid_iter": 3},
    "psf centroid": {"centroid_iter": 3, "centroid_psf": PSF},
}
by_mode = pytest.mark.parametrize("options", MODES.values(), ids=MODES)

REFUSED = {
    "obj list": ({"obj": [1, 2]}, TypeError, "obj must be an astropy Table"),
    "obj without x": ({"obj": Table({"y": [1.0]})}, ValueError, "'x' and 'y', got only"),
    "x two-dimensional": (
        {"obj": Table({"x": np.ones((2, 3)), "y": [1.0, 2.0]})},
        ValueError,
        "'x' of obj",
    ),
    "image 3-D": ({"image": np.ones((2, 3, 4))}, ValueError, "image must be a 2-D array"),
    "image complex": ({"image": STARS + 1j}, TypeError, "image must be .*real"),
    "image empty": ({"image": np.ones((0, 0))}, ValueError, "image must be .*one pixel"),
    "mask of another shape": ({"mask": np.ones((5, 5))}, ValueError, "mask must .*shape"),
    "bg of another shape": ({"bg": np.ones((5, 5))}, ValueError, "bg must .*shape"),
    "err of another shape": ({"err": np.ones((5, 5))}, ValueError, "err must .*shape"),
    "gain negative": ({"gain": -1}, ValueError, "gain must be"),
    "gain NaN": ({"gain": np.nan}, ValueError, "gain must be"),
    "gain string": ({"gain": "2"}, TypeError, "gain must be"),
    "gain array": ({"gain": np.ones(3)}, TypeError, "gain must be"),
    "aper 0": ({"aper": 0}, ValueError, "aper must be a positive"),
    "aper negative": ({"aper": -3}, ValueError, "aper must be a positive"),
    "aper NaN": ({"aper": np.nan}, ValueError, "aper must be a positive"),
    "aper array": ({"aper": [3, 4]}, TypeError, "aper must be a positive"),
    "fwhm 0": ({"fwhm": 0}, ValueError, "fwhm must be a positive"),
    "fwhm NaN": ({"fwhm": np.nan}, ValueError, "fwhm must be a positive"),
    "fwhm array": ({"fwhm": [2, 3]}, TypeError, "fwhm must be a positive"),
    "fwhm of another length": (
        {"fwhm": lambda x, y: np.ones(5) if np.ndim(x) else 3.0},
        ValueError,
        "fwhm must return",
    ),
    "bkgann scalar": ({"bkgann": 5}, ValueError, "bkgann must be two radii"),
    "bkgann of three": ({"bkgann": (5, 6, 7)}, ValueError, "bkgann must be two radii"),
    "bkgann reversed": ({"bkgann": (15, 8)}, ValueError, "bkgann must .*outer radius above"),
    "bkgann negative": ({"bkgann": (-1, 8)}, ValueError, "bkgann must be a positive"),
    "bg_size 0": ({"bg_size": 0}, ValueError, "bg_size must be an integer of at least 2"),
    "bg_size 1": ({"bg_size": 1}, ValueError, "bg_size must be an integer of at least 2"),
    "bg_size negative": ({"bg_size": -64}, ValueError, "bg_size must be an integer"),
    "bg_size tuple": ({"bg_size": (64, 64)}, TypeError, "bg_size must be an integer"),
    "optimal without fwhm": ({"optimal": True}, ValueError, "fwhm must be given"),
    "psf and optimal": (
        {"optimal": True, "psf": PSF, "fwhm": 3},
        ValueError,
        "psf and optimal=True exclude each other",
    ),
    "psf without fwhm": (
        {"psf": {k: v for k, v in PSF.items() if k != "fwhm"}},
        ValueError,
        "psf must have an entry 'fwhm'",
    ),
    "psf of strings": ({"psf": ["a"]}, TypeError, "psf must be"),
    "psf without data": ({"psf": {"sampling": 1.0, "fwhm": 3.0}}, ValueError, "psf must have"),
    "psf missing file": ({"psf": "/nowhere.psf"}, OSError, "nowhere"),
    "centroid_psf of strings": ({"centroid_psf": ["a"]}, TypeError, "centroid_psf must be"),
    "centroid_iter negative": ({"centroid_iter": -1}, ValueError, "centroid_iter must be"),
    "group_factor 0": ({"group_factor": 0}, ValueError, "group_factor must be"),
    "group_radius_factor 0": ({"group_radius_factor": 0}, ValueError, "group_radius_factor must"),
    "group_halo_factor 0": ({"group_halo_factor": 0}, ValueError, "group_halo_factor must be"),
    "maxiter 0": ({"maxiter": 0}, ValueError, "maxiter must be an integer of at least 1"),
    "maxiter float": ({"maxiter": 2.5}, TypeError, "maxiter must be an integer"),
    "fit_radius negative": ({"fit_radius": -1}, ValueError, "fit_radius must be"),
    "damp_snthresh NaN": ({"damp_snthresh": np.nan}, ValueError, "damp_snthresh must be"),
    "clip_sigma 0": ({"clip_sigma": 0}, ValueError, "clip_sigma must be"),
    "clip_iters negative": ({"clip_iters": -1}, ValueError, "clip_iters must be"),
    "sn string": ({"sn": "5"}, TypeError, "sn must be"),
    "backend unknown": ({"backend": "torch"}, ValueError, "backend must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_named(backend, case):
    options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        measure(**{"backend": backend, **options})


@by_mode
def test_nothing_of_the_caller_is_modified(backend, options):
    obj, image, mask, err = table(), STARS.copy(), np.zeros(SHAPE, bool), np.full(SHAPE, 3.0)
    image[5, 5] = np.nan
    before = image.copy()
    result = measure(backend, obj, image, mask=mask, err=err, get_bg=True, **options)
    assert obj.colnames == ["x", "y"]
    assert not obj.meta
    np.testing.assert_array_equal(obj["x"], X)
    np.testing.assert_array_equal(image, before)
    assert not mask.any()
    assert np.all(err == 3.0)
    assert result[2] is err


@by_mode
def test_bad_rows_cost_themselves_only(backend, options):
    bad = Table({"x": [np.nan, np.inf, 1e6, -1e300, 5.0], "y": [1.0, 2.0, 3.0, 4.0, np.nan]})
    both = Table({name: np.concatenate([bad[name], table()[name]]) for name in ("x", "y")})
    result, alone = measure(backend, both, **options), measure(backend, **options)
    for name in alone.colnames:
        np.testing.assert_array_equal(result[name][len(bad) :], alone[name], name)
    no_position = [0, 1, 4]
    assert np.all(np.isnan(result["flux"][no_position]))
    failed = Flag.POOR_FIT if "psf" in options else Flag.NO_FIT
    assert np.all(result["flags"][no_position] == (Flag.INVALID | failed))
    assert np.all(result["flags"][[2, 3]] != 0)


@by_mode
@pytest.mark.parametrize("dtype", ["f4", ">f4", ">i2", "u2", "i8"])
def test_any_dtype_of_the_image(backend, options, dtype):
    image = np.rint(STARS).astype(dtype)
    result = measure(backend, image=np.asfortranarray(image), **options)
    expected = measure(backend, image=image.astype(float), **options)
    np.testing.assert_array_equal(result["flux"], expected["flux"])


@by_mode
def test_rows_that_are_masked_have_no_position(backend, options):
    obj = table()
    obj["x"] = MaskedColumn(X, mask=[False, True, False])
    flags = measure(backend, obj, **options)["flags"]
    assert [bool(flag & Flag.INVALID) for flag in flags] == [False, True, False]


@pytest.mark.parametrize("dtype", ["f4", "i8", "u1"])
def test_columns_that_are_there_are_replaced(backend, dtype):
    obj = table()
    for name in ("flux", "mag", "x_psf", "niter_psf"):
        obj[name] = np.ones(3, dtype)
    obj["flags"] = np.array([1, 2, 4], dtype)
    result = measure(backend, obj, psf=PSF)
    assert result["flux"].dtype == result["x_psf"].dtype == np.float64
    assert result["niter_psf"].dtype == result["flags"].dtype == np.int64
    assert np.all(result["flags"] & 7 == [1, 2, 4])


def test_without_gain_there_is_no_poisson_noise(backend):
    """The reference takes no gain for a gain of 1, on top of a given noise map, too."""
    for options in ({}, MODES["single"]):
        without = measure(backend, bg=100.0, err=3.0, **options)
        with_gain = measure(backend, bg=100.0, err=3.0, gain=2.0, **options)
        expected = np.sqrt(without["fluxerr"] ** 2 + without["flux"] / 2)
        np.testing.assert_allclose(with_gain["fluxerr"], expected, rtol=1e-12)
        np.testing.assert_array_equal(
            measure(backend, bg=100.0, err=3.0, gain=0, **options)["fluxerr"], without["fluxerr"]
        )
    np.testing.assert_allclose(
        measure(backend, aper=4.0, bg=100.0, err=3.0)["fluxerr"], 3 * np.sqrt(16 * np.pi), rtol=0.02
    )


def test_an_empty_annulus_costs_its_row_only(backend):
    mask = np.zeros(SHAPE, bool)
    mask[15:46, 5:36] = True
    mask[28:33, 18:23] = False
    options = {"mask": mask, "bg": 100.0, "err": 3.0, **MODES["optimal"]}
    result = measure(backend, **options)
    assert np.isnan(result["flux"]).tolist() == [True, False, False]
    assert result["flags"][0] == Flag.INVALID | Flag.NO_FIT | Flag.MASKED
    others = measure(backend, table()[1:], **options)
    np.testing.assert_array_equal(result["flux"][1:], others["flux"])
    medians = measure(backend, mask=mask, bg=100.0, err=3.0, bkgann=(7, 12))
    assert np.isnan(medians["flux"]).tolist() == [True, False, False]
    assert medians["flags"][0] & Flag.NO_FIT


def test_widths_that_are_none_cost_their_rows_only(backend):
    def width(x, y):
        return np.where(np.asarray(x) == 20, np.nan, 3.0)

    for options in (MODES["optimal"], MODES["single"], {"aper": 1.0, "bkgann": (2, 4)}):
        result = measure(backend, **{**options, "fwhm": width})
        assert np.isnan(result["flux"]).tolist() == [True, False, False]
        assert result["flags"][0] & Flag.NO_FIT
        assert not np.any(result["flags"][1:])


def test_image_without_usable_pixels(backend):
    result = measure(backend, image=NAN)
    assert result["flux"].tolist() == [0, 0, 0]
    assert np.all(result["flags"] == Flag.MASKED)
    masked = measure(backend, mask=np.ones(SHAPE))
    assert masked["flux"].tolist() == [0, 0, 0]


def test_background_that_is_not_finite_spoils_what_it_is_in(backend):
    bg = np.full(SHAPE, 100.0)
    bg[30, 21] = np.nan
    for options in ({}, MODES["annulus"], MODES["single"]):
        result = measure(backend, bg=bg, err=3.0, **options)
        assert np.isnan(result["flux"]).tolist() == [True, False, False]
        assert result["flags"].tolist() == [Flag.NO_FIT, 0, 0]


def test_masked_pixels_of_a_masked_array_are_masked(backend):
    mask = np.zeros(SHAPE, bool)
    mask[30, 21] = True
    expected = measure(backend, mask=mask)
    result = measure(backend, image=np.ma.MaskedArray(STARS, mask))
    np.testing.assert_array_equal(result["flux"], expected["flux"])
    assert result["flags"].tolist() == [Flag.MASKED, 0, 0]


def test_scalar_background_and_noise(backend):
    result = measure(backend, bg=100.0, err=3.0)
    planes = measure(backend, bg=np.full(SHAPE, 100.0), err=np.full(SHAPE, 3.0, ">f4"))
    np.testing.assert_array_equal(result["flux"], planes["flux"])
    np.testing.assert_array_equal(result["fluxerr"], planes["fluxerr"])


def test_psf_may_come_in_many_forms(backend, tmp_path):
    expected = measure(backend, psf=PSF)
    model = gpuphot.PSFModel.from_psfex_dict(PSF)
    np.testing.assert_array_equal(measure(backend, psf=model)["flux"], expected["flux"])
    gaussian = measure(backend, psf=3.0)
    np.testing.assert_allclose(gaussian["flux"], FLUX, rtol=0.05)
    np.testing.assert_array_equal(
        measure(backend, psf=gpuphot.PSFModel.gaussian(3.0))["flux"], gaussian["flux"]
    )
    truth.write_varying_psf(tmp_path / "model.psf", 3.0, 70)
    from_file = measure(backend, psf=tmp_path / "model.psf")
    loaded = measure(backend, psf=dict(gpuphot.load_psf(tmp_path / "model.psf")))
    np.testing.assert_array_equal(from_file["flux"], loaded["flux"])
    np.testing.assert_allclose(from_file["flux"], FLUX, rtol=0.1)


def test_psf_of_sep(backend):
    sep_x = pytest.importorskip("sep_x")
    psf = sep_x.PSF.from_gaussian(3.0, oversampling=4)
    options = {"centroid_iter": 1, "centroid_psf": psf}
    if backend == "numpy":
        result, expected = measure(backend, psf=psf), measure(backend, psf=3.0)
        np.testing.assert_array_equal(result["flux"], expected["flux"])
        np.testing.assert_array_equal(
            measure(backend, **options)["x"],
            measure(backend, centroid_iter=1, centroid_psf=3.0)["x"],
        )
        return
    with pytest.raises(ValueError, match="psf must be a model whose data can be read"):
        measure(backend, psf=psf)
    with pytest.raises(ValueError, match="centroid_psf must be a model whose data"):
        measure(backend, **options)


def test_what_was_done_is_recorded(backend):
    meta = json.loads(measure(backend, psf=PSF, maxiter=7).meta[META_KEY])
    assert meta["function"] == "measure_objects_sep"
    assert meta["large_psf_groups"] == {"numpy": "sep_x", "cupy": "blocks"}[backend]
    assert meta["parameters"]["maxiter"] == 7
    assert "large_psf_groups" not in json.loads(measure(backend).meta[META_KEY])


@by_mode
def test_messages_say_what_is_done(backend, options):
    lines = []
    measure(backend, verbose=lines.append, **options)
    assert "3 objects" in lines[0]
    assert "3 of 3" in lines[-1]


@by_mode
@pytest.mark.fresh_seed
def test_permuted_rows_give_permuted_results(backend, options, scene, rng):
    order = rng.permutation(len(scene.table))
    result = measure(backend, scene.table, scene.image, mask=scene.mask, **options)
    permuted = measure(backend, scene.table[order], scene.image, mask=scene.mask, **options)
    for name in result.colnames:
        np.testing.assert_array_equal(result[name][order], permuted[name], name)
