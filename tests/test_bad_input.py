"""Bad and odd input: it works as a user would expect, or one clear error names the argument."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table

import gpuphot
from gpuphot import Flag

from .psfs import make_psf

SHAPE = (60, 70)
IMAGE = np.random.default_rng(0).normal(100, 3, SHAPE)
NAN = np.full(SHAPE, np.nan)
ONES = np.ones((5, 5))


def table():
    return Table({"x": [20.0, 40.0], "y": [30.0, 25.5]})


def measure(backend, obj=None, image=IMAGE, **options):
    obj = table() if obj is None else obj
    return gpuphot.measure_objects(obj, image, backend=backend, **options)


def with_column(name, values):
    t = table()
    t[name] = values
    return t


class NoNumber:
    """A callable FWHM whose summary fails."""

    def __init__(self, value):
        self.value = value

    def __call__(self, x, y):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class OnlyAtTheCentre(NoNumber):
    """A callable FWHM that fails for arrays of positions."""

    def __call__(self, x, y):
        return 3.0 if np.ndim(x) == 0 else super().__call__(x, y)


REFUSED = {
    # obj
    "obj list": ({"obj": [1, 2]}, TypeError, "obj must be an astropy Table, .*got list"),
    "obj dict": ({"obj": {"x": [1], "y": [2]}}, TypeError, "obj must be .*got dict"),
    "obj plain array": ({"obj": np.ones((2, 2))}, TypeError, "obj must be .*got ndarray"),
    "obj without x": ({"obj": Table({"y": [1.0]})}, ValueError, "'x' and 'y', got only"),
    "obj without columns": ({"obj": Table()}, ValueError, "obj must have columns 'x' and 'y'"),
    "x of strings": ({"obj": with_column("x", ["a", "b"])}, TypeError, "'x' of obj .*numbers"),
    "x of objects": ({"obj": with_column("x", [None, 1])}, TypeError, "'x' of obj .*object"),
    "y complex": ({"obj": with_column("y", [1j, 2])}, TypeError, "'y' of obj .*complex"),
    "x two-dimensional": (
        {"obj": with_column("x", np.ones((2, 3)))},
        ValueError,
        r"'x' of obj .*shape \(2, 3\)",
    ),
    "x in degrees": ({"obj": with_column("x", [1, 2] * u.deg)}, ValueError, "'x' .*pixels.*deg"),
    "flags of strings": ({"obj": with_column("flags", ["a", "b"])}, TypeError, "'flags' of obj"),
    "flags of fractions": ({"obj": with_column("flags", [0.5, 1])}, ValueError, "'flags' of obj"),
    "flags NaN": ({"obj": with_column("flags", [np.nan, 1])}, ValueError, "'flags' of obj"),
    "flags two-dimensional": (
        {"obj": with_column("flags", np.ones((2, 2), int))},
        TypeError,
        "'flags' of obj",
    ),
    # image
    "image None": ({"image": None}, TypeError, "image must be an array of real numbers"),
    "image string": ({"image": "m13.fits"}, TypeError, "image must be .*'m13.fits'"),
    "image complex": ({"image": IMAGE + 1j}, TypeError, "image must be .*complex128"),
    "image 1-D": ({"image": np.ones(5)}, ValueError, r"image must be a 2-D .*\(5,\)"),
    "image 3-D": ({"image": np.ones((2, 5, 5))}, ValueError, r"image must be a 2-D .*\(2, 5, 5\)"),
    "image empty": ({"image": np.ones((0, 0))}, ValueError, r"image must be .*\(0, 0\)"),
    "image ragged": ({"image": [[1, 2], [3]]}, TypeError, "image must be"),
    "image in magnitudes": ({"image": IMAGE * u.mag}, ValueError, "image must be in a linear unit"),
    "image all NaN": ({"image": NAN}, ValueError, "image must have unmasked, finite pixels"),
    # mask, bg, err
    "mask shape": ({"mask": np.ones((3, 3))}, ValueError, r"mask must .*shape \(3, 3\)"),
    "mask string": ({"mask": "no"}, TypeError, "mask must be an array"),
    "mask all True": ({"mask": np.ones(SHAPE)}, ValueError, "image must have unmasked"),
    "bg shape": ({"bg": np.ones((3, 3))}, ValueError, r"bg must .*got shape \(3, 3\)"),
    "bg complex": ({"bg": IMAGE * 1j}, TypeError, "bg must be an array of real numbers"),
    "bg string": ({"bg": "auto"}, TypeError, "bg must be .*'auto'"),
    "err shape": ({"err": np.ones(3)}, ValueError, r"err must .*got shape \(3,\)"),
    "err with a unit": ({"err": IMAGE * u.adu}, ValueError, "err must be without unit"),
    # aper, fwhm, bkgann
    "aper zero": ({"aper": 0}, ValueError, "aper must be a positive number, got 0"),
    "aper negative": ({"aper": -3.0}, ValueError, r"aper must be a positive number, got -3\.0"),
    "aper NaN": ({"aper": np.nan}, ValueError, "aper must be a positive number, got nan"),
    "aper infinite": ({"aper": np.inf}, ValueError, "aper must be a positive number, got inf"),
    "aper None": ({"aper": None}, TypeError, "aper must be a positive number, got NoneType"),
    "aper string": ({"aper": "3"}, TypeError, "aper must be a positive number, got '3'"),
    "aper list": ({"aper": [3, 4]}, TypeError, "aper must be a positive number, got list"),
    "aper array": ({"aper": np.ones(2)}, TypeError, r"aper must .*shape \(2,\)"),
    "aper boolean": ({"aper": True}, TypeError, "aper must be a positive number, got True"),
    "aper complex": ({"aper": 3j}, TypeError, "aper must be a positive number, got 3j"),
    "fwhm zero": ({"fwhm": 0}, ValueError, "fwhm must be a positive number, got 0"),
    "fwhm negative": ({"fwhm": -2}, ValueError, "fwhm must be a positive number, got -2"),
    "fwhm NaN": ({"fwhm": np.nan}, ValueError, "fwhm must be a positive number, got nan"),
    "fwhm string": ({"fwhm": "3.5"}, TypeError, "fwhm must be a positive number, got '3.5'"),
    "fwhm array": ({"fwhm": np.full(2, 3.0)}, TypeError, "fwhm must be a positive number"),
    "fwhm callable NaN": ({"fwhm": NoNumber(np.nan)}, ValueError, "fwhm must be positive.*nan"),
    "fwhm callable zero": ({"fwhm": NoNumber(0)}, ValueError, r"fwhm must be positive.*0\.0"),
    "fwhm callable string": ({"fwhm": NoNumber("wide")}, TypeError, "fwhm must be"),
    "fwhm callable failing": (
        {"fwhm": NoNumber(ValueError("outside of the map"))},
        TypeError,
        "fwhm must be .*outside of the map",
    ),
    "bkgann number": ({"bkgann": 8}, ValueError, r"bkgann must be two radii .*got 8"),
    "bkgann three": ({"bkgann": (5, 8, 9)}, ValueError, "bkgann must be two radii"),
    "bkgann string": ({"bkgann": "58"}, ValueError, "bkgann must be two radii"),
    "bkgann reversed": ({"bkgann": (15, 8)}, ValueError, "bkgann must have an outer radius above"),
    "bkgann equal": ({"bkgann": (8, 8)}, ValueError, "bkgann must have an outer radius above"),
    "bkgann from zero": ({"bkgann": (0, 8)}, ValueError, "bkgann must be a positive number, got 0"),
    "bkgann NaN": ({"bkgann": (5, np.nan)}, ValueError, "bkgann must be a positive .*got nan"),
    "bkgann of strings": ({"bkgann": ("5", "8")}, TypeError, "bkgann must be a positive number"),
    "bkg_order 3": ({"bkg_order": 3}, ValueError, "bkg_order must be one of 0, 1, 2, got 3"),
    "bkg_order -1": ({"bkg_order": -1}, ValueError, "bkg_order must be one of 0, 1, 2, got -1"),
    "bkg_order None": ({"bkg_order": None}, ValueError, "bkg_order must be one of"),
    "bkg_order array": ({"bkg_order": np.ones(2)}, ValueError, "bkg_order must be one of"),
    # numbers
    "gain negative": ({"gain": -1}, ValueError, "gain must be a positive number or None, got -1"),
    "gain NaN": ({"gain": np.nan}, ValueError, "gain must be .*got nan"),
    "gain string": ({"gain": "2"}, TypeError, "gain must be .*got '2'"),
    "gain array": ({"gain": np.ones(2)}, TypeError, "gain must be"),
    "bg_size zero": ({"bg_size": 0}, ValueError, "bg_size must be an integer of at least 1, got 0"),
    "bg_size negative": ({"bg_size": -64}, ValueError, "bg_size must be .*got -64"),
    "bg_size fraction": ({"bg_size": 64.0}, TypeError, r"bg_size must be .*got 64\.0"),
    "bg_size tuple": ({"bg_size": (64, 64)}, TypeError, "bg_size must be .*got tuple"),
    "bg_size None": ({"bg_size": None}, TypeError, "bg_size must be .*got NoneType"),
    "sn NaN": ({"sn": np.nan}, ValueError, "sn must be a number or None, got nan"),
    "sn string": ({"sn": "5"}, TypeError, "sn must be a number or None, got '5'"),
    "keep_negative array": ({"keep_negative": np.ones(2)}, TypeError, "keep_negative must be"),
    "optimal array": ({"optimal": np.ones(2)}, TypeError, "optimal must be True or False"),
    "get_bg array": ({"get_bg": np.ones(2)}, TypeError, "get_bg must be True or False"),
    "centroid_method array": (
        {"centroid_method": np.ones(2)},
        ValueError,
        "centroid_method must be one",
    ),
    "aper masked": ({"aper": np.ma.masked}, TypeError, "aper must be a positive number"),
    "aper beyond all pixels": ({"aper": 1e200}, ValueError, "aper must be a radius"),
    "aper times fwhm": ({"aper": 1e6, "fwhm": 1e6}, ValueError, "aper must be a radius"),
    "fwhm callable empty": ({"fwhm": NoNumber(KeyError("x"))}, TypeError, "fwhm must.*KeyError"),
    "centroid_iter negative": ({"centroid_iter": -1}, ValueError, "centroid_iter must be .*got -1"),
    "centroid_iter fraction": ({"centroid_iter": 1.5}, TypeError, "centroid_iter must be"),
    "centroid_method": ({"centroid_method": "moment"}, ValueError, "centroid_method must be one"),
    "centroid_method None": ({"centroid_method": None}, ValueError, "centroid_method must be one"),
    # psf, optimal extraction
    "optimal without profile": ({"optimal": True}, ValueError, "psf or fwhm must be given"),
    "psf centroids without profile": (
        {"centroid_iter": 1, "centroid_method": "psf"},
        ValueError,
        "psf or fwhm must be given",
    ),
    "psf boolean": ({"psf": True}, TypeError, "psf must be a PSFModel.*got bool"),
    "psf list": ({"psf": [3.0]}, TypeError, "psf must be .*got list"),
    "psf array": ({"psf": np.ones((5, 5))}, TypeError, "psf must be .*got ndarray"),
    "psf function": ({"psf": lambda x, y: 3.0}, TypeError, "psf must be .*got function"),
    "psf zero": ({"psf": 0}, ValueError, r"FWHM of psf must be a positive number, got 0"),
    "psf negative": ({"psf": -3.0}, ValueError, r"FWHM of psf must be .*got -3\.0"),
    "psf NaN": ({"psf": np.nan}, ValueError, "FWHM of psf must be .*got nan"),
    "psf infinite": ({"psf": np.inf}, ValueError, "FWHM of psf must be .*got inf"),
    "psf empty": ({"psf": {}}, ValueError, "psf must have an entry 'data'"),
    "psf of text": (
        {"psf": {"data": "star", "sampling": 1}},
        ValueError,
        r"psf\['data'\] must hold numbers",
    ),
    "psf without sampling": ({"psf": {"data": ONES}}, ValueError, "an entry 'sampling', got"),
    "psf sampled at zero": (
        {"psf": {"data": ONES, "sampling": 0}},
        ValueError,
        r"psf\['sampling'\] must be positive, got 0",
    ),
    "psf not finite": (
        {"psf": {"data": np.full((5, 5), np.inf), "sampling": 1}},
        ValueError,
        r"psf\['data'\] must hold finite numbers",
    ),
    "psf with too few planes": (
        {"psf": {"data": ONES, "sampling": 1, "degree": 1}},
        ValueError,
        "degree 1",
    ),
    "psf of even size": (
        {"psf": make_psf(52, 52, 0.5, 0)},
        ValueError,
        "psf must make stamps of an odd number of rows and columns.*26 x 26",
    ),
    "psf of an even number of columns": (
        {"psf": make_psf(51 * 2, 52, 0.5, 0)},
        ValueError,
        "psf must make stamps of an odd number .*51 x 26",
    ),
    "psf file missing": ({"psf": "no.psf"}, FileNotFoundError, r"no\.psf"),
    "psf file of another kind": ({"psf": __file__}, ValueError, "psf file .* cannot be used"),
    "group_sources array": (
        {"group_sources": np.ones(2)},
        TypeError,
        "group_sources must be True or False",
    ),
    "grouper_radius NaN": (
        {"grouper_radius": np.nan},
        ValueError,
        "grouper_radius must be a number of pixels or None, got nan",
    ),
    "grouper_radius infinite": ({"grouper_radius": np.inf}, ValueError, "grouper_radius .*inf"),
    "grouper_radius beyond all pixels": ({"grouper_radius": 1e10}, ValueError, "grouper_radius"),
    "grouper_radius string": ({"grouper_radius": "5"}, TypeError, "grouper_radius must be .*'5'"),
    "grouper_radius array": ({"grouper_radius": np.ones(2)}, TypeError, "grouper_radius must be"),
    "fwhm too few": (
        {"fwhm": NoNumber(np.full(3, 3.0)), "optimal": True},
        ValueError,
        r"one for each of the positions, got shape \(3,\) for 2 positions",
    ),
    "fwhm two-dimensional": (
        {"fwhm": NoNumber(np.full((2, 1), 3.0)), "optimal": True},
        ValueError,
        r"got shape \(2, 1\) for 2 positions",
    ),
    "fwhm of strings": (
        {"fwhm": OnlyAtTheCentre(np.array(["a", "b"])), "optimal": True},
        TypeError,
        "fwhm must return a number, or an array",
    ),
    "fwhm None": (
        {"fwhm": OnlyAtTheCentre(None), "optimal": True},
        TypeError,
        "fwhm must return a number, or an array",
    ),
    "fwhm complex": (
        {"fwhm": OnlyAtTheCentre(np.ones(2) * 3j), "optimal": True},
        TypeError,
        "fwhm must return .*complex",
    ),
    "fwhm ragged": (
        {"fwhm": OnlyAtTheCentre([[3.0], [3.0, 2.0]]), "optimal": True},
        TypeError,
        "fwhm must return",
    ),
    "fwhm failing at positions": (
        {"fwhm": OnlyAtTheCentre(IndexError("off the map")), "optimal": True},
        TypeError,
        "fwhm must return .*calling it failed: IndexError: off the map",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message_that_names_the_argument(backend, case):
    options, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as caught:
        measure(backend, **options)
    assert "\n" not in str(caught.value)


FITTED = {"optimal": True, "psf": 3.0}
ALONE = {**FITTED, "grouper_radius": 0}
SAME_AS_DEFAULT = {
    "bkgann list": ({"bkgann": [5, 9]}, {"bkgann": (5, 9)}),
    "bkgann array": ({"bkgann": np.array([5, 9])}, {"bkgann": (5, 9)}),
    "bkg_order 1.0": ({"bkgann": (5, 9), "bkg_order": 1.0}, {"bkgann": (5, 9), "bkg_order": 1}),
    "aper NumPy integer": ({"aper": np.int16(4)}, {"aper": 4.0}),
    "aper 0-d array": ({"aper": np.array(4)}, {"aper": 4.0}),
    "fwhm callable": ({"fwhm": NoNumber(2.5)}, {"fwhm": 2.5}),
    "centroid_iter None": ({"centroid_iter": None}, {}),
    "centroid_iter False": ({"centroid_iter": False}, {}),
    "fwhm callable, array": ({"fwhm": NoNumber(np.array([2.5]))}, {"fwhm": 2.5}),
    "image list": ({"image": IMAGE.tolist()}, {}),
    "image big-endian": ({"image": IMAGE.astype(">f8")}, {}),
    "image masked nowhere": ({"image": np.ma.MaskedArray(IMAGE)}, {}),
    "mask None": ({"mask": None}, {"mask": np.zeros(SHAPE)}),
    "mask row": ({"mask": np.eye(1, 70, 20)}, {"mask": np.eye(1, 70, 20) + np.zeros(SHAPE)}),
    "mask numbers": ({"mask": 2.5 * np.eye(*SHAPE)}, {"mask": np.eye(*SHAPE) > 0}),
    "bg scalar": ({"bg": 100}, {"bg": np.full(SHAPE, 100.0)}),
    "bg column": ({"bg": np.full((60, 1), 99.0)}, {"bg": 99.0}),
    "err scalar": ({"err": 2}, {"err": np.full(SHAPE, 2.0)}),
    "err integer": ({"err": np.full(SHAPE, 2)}, {"err": np.full(SHAPE, 2.0)}),
    "err negative": ({"err": -np.full(SHAPE, 2.0)}, {"err": np.full(SHAPE, 2.0)}),
    "gain zero": ({"gain": 0}, {}),
    "gain infinite": ({"gain": np.inf}, {}),
    "sn negative": ({"sn": -5}, {}),
    "bg_size NumPy integer": ({"bg_size": np.int64(64)}, {}),
    "bg_size beyond the image": ({"bg_size": 10**9}, {"bg_size": 70}),
    "unused grouping": ({"group_sources": False, "grouper_radius": 5}, {}),
    "unused psf": ({"psf": 3.0}, {}),
    "unused widths": ({"fwhm": OnlyAtTheCentre(IndexError())}, {"fwhm": 3.0}),
    "grouper_radius None": ({"optimal": True, "psf": 3, "grouper_radius": None}, FITTED),
    "grouper_radius tiny": ({**FITTED, "grouper_radius": 1e-300}, {**FITTED, "grouper_radius": 0}),
    "grouper_radius negative": (
        {**FITTED, "grouper_radius": -1e300},
        {**FITTED, "grouper_radius": 0},
    ),
    "optimal integer": ({**FITTED, "optimal": 1, "group_sources": np.True_}, FITTED),
    "psf NumPy number": ({**FITTED, "psf": np.float32(3)}, FITTED),
    "psf native and not": (
        {"optimal": True, "psf": {"data": ONES.astype(">f4"), "sampling": 1}},
        {"optimal": True, "psf": {"data": ONES.tolist(), "sampling": 1.0, "degree": 0}},
    ),
    "fwhm and psf": ({**FITTED, "psf": 3, "fwhm": NoNumber(1.0)}, {**FITTED, "fwhm": 1.0}),
    "fwhm integers": (
        {"optimal": True, "fwhm": NoNumber(np.array([3, 3]))},
        {"optimal": True, "fwhm": 3.0},
    ),
    "fwhm list": ({"optimal": True, "fwhm": NoNumber([3.0, 3])}, {"optimal": True, "fwhm": 3.0}),
    "Fortran order": ({"image": np.asfortranarray(IMAGE)}, {}),
    "row positions": ({"obj": table().as_array()}, {}),
}


@pytest.mark.parametrize("case", SAME_AS_DEFAULT)
def test_odd_but_meaningful_input_works(backend, case):
    odd, plain = SAME_AS_DEFAULT[case]
    result, expected = measure(backend, **odd), measure(backend, **plain)
    for name in expected.colnames:
        np.testing.assert_array_equal(result[name], expected[name])


@pytest.mark.parametrize("dtype", ["u2", ">i2", "?", "f2", ">f4", "i8"])
@pytest.mark.parametrize("options", [{}, FITTED], ids=["aperture", "optimal"])
def test_images_of_any_real_dtype(backend, dtype, options):
    image = IMAGE.astype(dtype)
    result = measure(backend, image=image, bg=0, err=1.0, **options)
    expected = measure(backend, image=image.astype(float), bg=0, err=1.0, **options)
    np.testing.assert_array_equal(result["flux"], expected["flux"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6, -1e6, 1e300])
@pytest.mark.parametrize("bkgann", [None, (5, 9)])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_one_bad_position_costs_only_its_own_row(backend, value, bkgann, order):
    options = {"bkgann": bkgann, "bkg_order": order, "centroid_iter": 2}
    result = measure(backend, with_column("x", [20.0, value]), **options)
    alone = measure(backend, table()[:1], **options)
    assert np.isnan(result["flux"][1])
    assert result["flags"].tolist() == [0, Flag.INVALID]
    for name in alone.colnames:
        assert result[name][0] == alone[name][0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6, -1e6, 1e300])
@pytest.mark.parametrize(
    "options",
    [{"bkgann": (5, 9)}, {"bkgann": (5, 9), "group_sources": False}, {"grouper_radius": 9e8}],
    ids=str,
)
def test_one_bad_position_costs_only_its_own_fit(backend, value, options):
    """Not even where it is in a group with the others."""
    options = {**FITTED, **options}
    result = measure(backend, with_column("x", [20.0, value]), **options)
    alone = measure(backend, table()[:1], **options)
    assert np.isnan(result["flux"][1])
    assert np.isnan(result["fluxerr"][1])
    assert result["flags"].tolist() == [0, Flag.INVALID | Flag.NO_FIT]
    for name in ("flux", "fluxerr", "npix_optimal", "norm_optimal"):
        assert result[name][0] == pytest.approx(alone[name][0], rel=1e-12)


def test_masked_position_is_not_measured(backend):
    masked = with_column("y", MaskedColumn([30.0, 25.5], mask=[False, True]))
    result = measure(backend, masked)
    assert np.isnan(result["flux"]).tolist() == [False, True]
    assert result["flags"].tolist() == [0, Flag.INVALID]


def test_masked_flags_count_as_none(backend):
    flags = MaskedColumn([4, 8], mask=[False, True])
    assert measure(backend, with_column("flags", flags))["flags"].tolist() == [4, 0]


def test_image_without_a_finite_pixel_has_no_flux_but_a_flag(backend):
    result = measure(backend, image=NAN, bg=0.0, err=1.0)
    assert result["npix_aper"].tolist() == [0, 0]
    assert result["flags"].tolist() == [Flag.MASKED, Flag.MASKED]


def test_constant_image_has_no_flux_and_no_error(backend):
    result = measure(backend, image=np.full(SHAPE, 0.1), bkgann=(5, 9))
    np.testing.assert_allclose(result["flux"], 0, atol=1e-14)
    np.testing.assert_allclose(result["fluxerr"], 0, atol=1e-14)


@pytest.mark.parametrize("name", ["bg", "err"])
def test_masked_array_planes_are_not_known_where_masked(backend, name):
    mask = np.zeros(SHAPE, bool)
    mask[30, 20] = True
    plane = np.ma.MaskedArray(np.ones(SHAPE), mask)
    result = measure(backend, **{"bg": 0.0, "err": 1.0, name: plane})
    spoilt = "flux" if name == "bg" else "fluxerr"
    assert np.isnan(result[spoilt]).tolist() == [True, False]


@pytest.mark.parametrize("value", [1e200, -1e300, 1e308])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_huge_pixels_raise_no_warnings(backend, value, order):
    image = IMAGE.copy()
    image[30, 26] = value
    result = measure(backend, image=image, bkgann=(5, 9), bkg_order=order, bg=0.0, err=1.0)
    assert np.isfinite(result["flux"][1])
    measure(backend, gain=1e-310)


@pytest.mark.parametrize("value", [1e200, -1e300, 1e308])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("bkgann", [None, (5, 9)])
def test_huge_pixels_raise_no_warnings_in_fits(backend, value, grouped, bkgann):
    """They spoil the fits that they are in, and no others."""
    obj = Table({"x": [20.0, 23.0, 50.0], "y": [30.0, 31.0, 25.5]})
    image = IMAGE.copy()
    image[30, 21] = value
    options = {"bkgann": bkgann, "bg": 0.0, "err": 1.0, "group_sources": grouped, **FITTED}
    result = measure(backend, obj, image, **options)
    assert result["flux"][2] == measure(backend, obj, **options)["flux"][2]
    assert np.all(result["flags"][:2] & (Flag.NO_FIT | Flag.POOR_FIT))


@pytest.mark.parametrize("value", [1e-310, 1e-200, 1e30, 1e150])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("bkgann", [None, (5, 9)])
def test_extreme_noise_raises_no_warnings_in_fits(backend, value, grouped, bkgann):
    """Fluxes do not depend on it, but by rounding errors."""
    obj = Table({"x": [20.0, 23.0, 50.0], "y": [30.0, 31.0, 25.5]})
    err = np.ones(SHAPE)
    err[25:35, 15:25] = value
    options = {"bkgann": bkgann, "bg": 0.0, "group_sources": grouped, **FITTED}
    result, expected = (measure(backend, obj, err=each, **options) for each in (err, 1.0))
    for column in ("flux", "npix_optimal", "norm_optimal"):
        np.testing.assert_allclose(result[column], expected[column], rtol=1e-12)
    assert result["fluxerr"][2] == expected["fluxerr"][2]


@pytest.mark.parametrize("width", [1e-300, 1e-30, 0.01])
@pytest.mark.parametrize("grouped", [False, True])
def test_stars_narrower_than_any_pixel_are_fitted_to_one(backend, width, grouped):
    obj = Table({"x": [20.0, 22.0, 50.3], "y": [30.0, 31.0, 25.4]})
    widths = OnlyAtTheCentre(np.full(3, width))
    result = measure(
        backend, obj, bg=0.0, err=1.0, fwhm=widths, aper=1, optimal=True, group_sources=grouped
    )
    np.testing.assert_allclose(result["flux"], IMAGE[[30, 31, 25], [20, 22, 50]], rtol=1e-12)
    np.testing.assert_allclose(result["fluxerr"], 1, rtol=1e-12)


@pytest.mark.parametrize("bkgann", [(1000, 1001), (1e6, 1e6 + 0.1), (1, 1e8)])
@pytest.mark.parametrize("order", [0, 1])
def test_annuli_far_larger_than_the_image_take_no_more_memory(backend, bkgann, order):
    result = measure(backend, bkgann=bkgann, bkg_order=order)
    assert np.isfinite(result["flux"]).all() == (bkgann[0] == 1)


def test_noise_of_zero_gives_errors_of_zero(backend):
    assert measure(backend, err=0.0)["fluxerr"].tolist() == [0, 0]


def test_aperture_far_larger_than_the_image(backend):
    result = measure(backend, aper=500, bg=0.0, err=1.0)
    np.testing.assert_allclose(result["flux"], IMAGE.sum(), rtol=1e-12)
    np.testing.assert_allclose(result["npix_aper"], IMAGE.size, rtol=1e-12)


def test_annulus_thinner_than_a_pixel(backend):
    result = measure(backend, bkgann=(8, 8.01))
    held = np.isfinite(result["bg_local"])
    assert np.all((np.asarray(result["flags"]) == 0) == held)
    assert np.all(np.isnan(result["flux"]) == ~held)


@pytest.mark.parametrize("options", [{}, FITTED], ids=["aperture", "optimal"])
def test_filters_may_leave_nothing(backend, options):
    for filters in ({"sn": 1e9}, {"keep_negative": False, "bg": 1e6}):
        result = measure(backend, **filters, **options)
        assert len(result) == 0
        assert "flux" in result.colnames
