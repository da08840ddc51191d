"""Pixels to the sky and back, in every frame and with distortion; NaN where there is no answer."""

from __future__ import annotations

from pathlib import Path

import astropy
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, DistortionLookupTable, Sip

from gpuphot.images import read_image
from gpuphot.sky import pixel_to_sky, sky_to_pixel

N = 2000
M13 = Path(astropy.__file__).parent / "io/fits/hdu/compressed/tests/data/m13.fits"
DECAM = Path(__file__).parents[2] / "shared/data/decam/image_r_N6.fits"


def make_wcs(ctype=("RA---TAN", "DEC--TAN"), crval=(150.0, 2.0), scale=0.3 / 3600, **frame):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ctype
    wcs.wcs.crval = crval
    wcs.wcs.crpix = N / 2, N / 2
    wcs.wcs.cd = scale * np.array([[-1.0, 0.1], [0.1, 1.0]])
    for name, value in frame.items():
        setattr(wcs.wcs, name, value)
    return wcs


def with_sip(strength):
    """Distortion that moves the corners of the image by hundreds of pixels per 0.1 of strength."""
    wcs = make_wcs(("RA---TAN-SIP", "DEC--TAN-SIP"))
    a, b = np.zeros((2, 4, 4))
    a[2, 0], a[0, 2], a[1, 1], a[3, 0] = np.array([1, -1, 0.5, 1 / N]) * strength / N
    b[1, 1], b[2, 0], b[0, 3] = np.array([1, 1, 1 / N]) * strength / N
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    return wcs


def with_tpv():
    header = make_wcs(("RA---TPV", "DEC--TPV")).to_header()
    header.update({"PV1_1": 1.01, "PV1_4": 0.3, "PV1_7": 1.0, "PV2_1": 0.99, "PV2_4": -0.2})
    return WCS(header)


def with_lookup_table():
    wcs = make_wcs()
    y, x = np.indices((21, 21)) / 20
    for name, shift in (("cpdis1", 5 * np.sin(3 * x) * y), ("cpdis2", 4 * np.cos(2 * x + y))):
        table = DistortionLookupTable(shift.astype(np.float32), (1, 1), (1, 1), (N / 20, N / 20))
        setattr(wcs, name, table)
    return wcs


WORLDS = {
    "TAN": make_wcs,
    "SIN": lambda: make_wcs(("RA---SIN", "DEC--SIN")),
    "ARC": lambda: make_wcs(("RA---ARC", "DEC--ARC")),
    "SIP": lambda: with_sip(0.02),
    "strong SIP": lambda: with_sip(0.1),
    "TPV": with_tpv,
    "lookup table": with_lookup_table,
    "axes swapped": lambda: make_wcs(("DEC--TAN", "RA---TAN"), (2.0, 150.0)),
    "galactic": lambda: make_wcs(("GLON-TAN", "GLAT-TAN")),
    "ecliptic": lambda: make_wcs(("ELON-TAN", "ELAT-TAN")),
    "FK5": lambda: make_wcs(radesys="FK5", equinox=2000.0),
    "FK5 of 1975": lambda: make_wcs(radesys="FK5", equinox=1975.0),
    "FK4": lambda: make_wcs(radesys="FK4", equinox=1950.0),
    "pole": lambda: make_wcs(crval=(10.0, 90.0)),
    "0 h": lambda: make_wcs(crval=(0.0, 60.0)),
    "coarse": lambda: make_wcs(scale=30 / 3600),
}


@pytest.fixture(params=WORLDS)
def wcs(request):
    return WORLDS[request.param]()


@pytest.fixture
def pixels(rng):
    return rng.uniform(-100, N + 100, (2, 500))


def all_sky(rng, n):
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))


@pytest.mark.fresh_seed
def test_way_to_the_sky_and_back_ends_where_it_began(wcs, pixels):
    x, y = sky_to_pixel(wcs, *pixel_to_sky(wcs, *pixels))
    np.testing.assert_allclose((x, y), pixels, rtol=0, atol=1e-6)


@pytest.mark.fresh_seed
def test_positions_are_those_of_astropy(wcs, pixels):
    ra, dec = pixel_to_sky(wcs, *pixels)
    expected = wcs.pixel_to_world(*pixels).icrs
    separation = expected.separation(SkyCoord(ra, dec, unit="deg"))
    assert np.max(separation.arcsec) < 1e-6


def test_reference_pixel_counts_from_0():
    wcs = make_wcs()
    np.testing.assert_allclose(pixel_to_sky(wcs, N / 2 - 1, N / 2 - 1), (150, 2), rtol=1e-14)
    np.testing.assert_allclose(sky_to_pixel(wcs, 150, 2), N / 2 - 1, rtol=1e-12)


def test_frame_of_the_image_is_not_that_of_the_answer():
    ra, dec = pixel_to_sky(make_wcs(("GLON-TAN", "GLAT-TAN"), (0.0, 0.0)), N / 2 - 1, N / 2 - 1)
    np.testing.assert_allclose((ra, dec), (266.405, -28.936), atol=1e-3)
    fk5 = pixel_to_sky(make_wcs(radesys="FK5", equinox=2000.0), 10.0, 10.0)
    icrs = pixel_to_sky(make_wcs(radesys="ICRS"), 10.0, 10.0)
    assert 1e-9 < np.max(np.abs(np.subtract(fk5, icrs))) < 1e-4


@pytest.mark.fresh_seed
def test_no_position_of_the_whole_sky_gets_a_false_answer(wcs, rng):
    ra, dec = all_sky(rng, 5000)
    x, y = sky_to_pixel(wcs, ra, dec)
    found = np.isfinite(x)
    np.testing.assert_array_equal(found, np.isfinite(y))
    back = SkyCoord(*pixel_to_sky(wcs, x[found], y[found]), unit="deg")
    wanted = SkyCoord(ra[found], dec[found], unit="deg")
    assert np.all(back.separation(wanted).arcsec < 0.01)
    centre = SkyCoord(*pixel_to_sky(wcs, N / 2, N / 2), unit="deg")
    inside = (np.abs(x - N / 2) < N / 2) & (np.abs(y - N / 2) < N / 2)
    far = centre.separation(SkyCoord(ra, dec, unit="deg")).deg > 20
    assert not np.any(inside & far)


@pytest.mark.fresh_seed
@pytest.mark.parametrize("make", [make_wcs, lambda: with_sip(0.02), with_tpv])
def test_far_side_of_the_sky_is_nan(make, rng):
    ra, dec = all_sky(rng, 2000)
    far = SkyCoord(150, 2, unit="deg").separation(SkyCoord(ra, dec, unit="deg")).deg > 90.01
    assert np.all(np.isnan(sky_to_pixel(make(), ra[far], dec[far])))


@pytest.mark.fresh_seed
def test_positions_without_answer_do_not_disturb_the_others(pixels, rng):
    wcs = with_sip(0.1)
    inside = pixel_to_sky(wcs, *pixels)
    ra, dec = (np.concatenate(pair) for pair in zip(all_sky(rng, 3000), inside, strict=True))
    x, y = sky_to_pixel(wcs, ra, dec)
    np.testing.assert_allclose((x[3000:], y[3000:]), pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_position_that_is_not_finite_is_nan(wcs, bad):
    for function, good in ((pixel_to_sky, 9.0), (sky_to_pixel, 2.0)):
        first, second = function(wcs, [bad, good, bad], [good, bad, bad])
        assert np.all(np.isnan(first))
        assert np.all(np.isnan(second))


@pytest.mark.parametrize("dec", [90.001, -99.0, 1e6])
def test_declination_beyond_the_pole_is_nan(wcs, dec):
    assert np.all(np.isnan(sky_to_pixel(wcs, 150.0, dec)))


def test_right_ascension_may_be_counted_otherwise():
    wcs = make_wcs(crval=(300.0, 2.0))
    for ra in (300.01, -59.99, 660.01):
        np.testing.assert_allclose(
            sky_to_pixel(wcs, ra, 2.0), sky_to_pixel(wcs, 300.01, 2.0), atol=1e-6
        )


def test_no_position_is_no_problem(wcs):
    for function in (pixel_to_sky, sky_to_pixel):
        first, second = function(wcs, [], [])
        assert (first.shape, second.shape) == ((0,), (0,))


def test_pixel_outside_the_projection_is_nan():
    wcs = make_wcs(("RA---AIT", "DEC--AIT"), (0.0, 0.0), scale=0.2)
    assert np.all(np.isnan(pixel_to_sky(wcs, -5000.0, 0.0)))


def test_input_is_not_modified(wcs):
    x, y = np.array([1.0, np.nan]), np.array([100.0, 2.0])
    pixel_to_sky(wcs, x, y)
    sky_to_pixel(wcs, x, y)
    np.testing.assert_array_equal(x, [1.0, np.nan])
    np.testing.assert_array_equal(y, [100.0, 2.0])


@pytest.mark.fresh_seed
def test_m13_is_where_it_is(rng):
    if not M13.is_file():
        pytest.skip("astropy is installed without its test data")
    wcs = read_image(M13).wcs
    pixels = rng.uniform(0, 300, (2, 100))
    ra, dec = pixel_to_sky(wcs, *pixels)
    cluster = SkyCoord(250.42, 36.46, unit="deg")
    assert np.all(cluster.separation(SkyCoord(ra, dec, unit="deg")).arcmin < 6)
    np.testing.assert_allclose(sky_to_pixel(wcs, ra, dec), pixels, atol=1e-6)


@pytest.mark.fresh_seed
@pytest.mark.skipif(not DECAM.is_file(), reason="the real images are not here")
def test_tpv_of_a_real_image_is_inverted(rng):
    wcs = read_image(DECAM).wcs
    pixels = rng.uniform(-1000, 1000, (2, 300))
    np.testing.assert_allclose(
        sky_to_pixel(wcs, *pixel_to_sky(wcs, *pixels)), pixels, rtol=0, atol=1e-6
    )


def test_header_of_a_file_gives_the_same_positions(tmp_path):
    wcs = with_sip(0.02)
    path = tmp_path / "image.fits"
    fits.writeto(path, np.ones((4, 5)), wcs.to_header(relax=True))
    np.testing.assert_allclose(
        pixel_to_sky(read_image(path).wcs, 3.0, 4.0), pixel_to_sky(wcs, 3.0, 4.0), rtol=1e-12
    )
