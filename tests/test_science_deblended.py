"""Aperture fluxes without the neighbours' light: bias and errors on pairs and crowded fields.

Everything comes from the same noisy image, see `crowding`. Medians of the error that were reached,
in per cent, of both stars of equal pairs, otherwise of the fainter one, at positions that are
known to 0.3 pixels before the fit; PSF fluxes are the seeds:

    separation in FWHM           1.0    1.25    1.5     2.0     3.0
    equal stars                  0.1     0.1    0.1     0.1     0.1
      plain aperture              47      27     14     2.6     0.1
    fainter by 2 magnitudes     -0.9    -0.6   -0.2     0.1     0.1
      plain aperture             294     172     86      16     0.6
    fainter by 5 magnitudes      -21    -7.5     -2     0.4     0.0
      plain aperture            3900    2500   1260     257     8.8

Beside a brighter star, it is the fitted positions of the fainter one that are wrong: a tenth of a
per cent of the bright star, by which the interpolated model is wrong, pulls it. At exact positions,
the function is within 0.3 (2 magnitudes) and 2.5 per cent (5 magnitudes).
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

import gpuphot

from . import crowding, truth
from .crowding import (
    FWHM,
    RADIUS,
    SEPARATIONS,
    SKY,
    error,
    flux_of,
    known_positions,
    measure,
    measured_pairs,
    pairs,
    pulls,
    targets,
)

SIGMAS = 4


# ---- the function itself -------------------------------------------------------------------------


@pytest.mark.parametrize(("contrast", "largest"), [(0, 0.1), (2, 0.5), (5, 3.0)])
def test_all_but_the_stars_own_light_is_subtracted(contrast, largest):
    """Without noise, at the true positions: down to 1 FWHM.

    What is left of 5 magnitudes is the cubic spline through the model's samples, which lies up to
    0.16 % beside the light of the bright star.
    """
    scene = pairs(contrast, noise=False)
    result = measure(scene, scene.table, fit_positions=False)
    for separation in SEPARATIONS:
        rows = targets(result, contrast, separation)
        assert abs(error(result, rows)[0]) < largest
        if separation <= 2:
            assert error(result, rows, "flux_ap_raw")[0] > 20 * largest


@pytest.mark.parametrize(("overlap_subpixel", "rms", "largest"), [(4, 3e-3, 1e-2), (5, 1e-7, 1e-6)])
def test_single_stars_are_left_alone(overlap_subpixel, rms, largest):
    """SEP has 5 x 5 sub-points a pixel: only with as many for the star's share, the two cancel."""
    scene = pairs(0, noise=False)
    result = measure(scene, scene.table, fit_positions=False, overlap_subpixel=overlap_subpixel)
    change = np.asarray(result["flux"] / result["flux_ap_raw"])[~np.isfinite(result["separation"])]
    assert abs(np.median(change) - 1) < 1e-3
    assert np.std(change) < rms
    assert np.max(np.abs(change - 1)) < largest


def test_errors_of_bright_stars_want_five_subpoints():
    """At signal-to-noise ratios of 1000, the 2e-3 of the default make the pulls 1.9."""
    default, five = (measured_pairs(5, overlap_subpixel=n) for n in (4, 5))
    bright = np.asarray((default["separation"] >= 2) & ~default["fainter"])
    assert pulls(default, bright & np.isfinite(default["separation"])) > 1.5
    assert pulls(five, bright & np.isfinite(default["separation"])) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("width", [1.0, 1.03])
def test_single_stars_do_not_depend_on_the_psf(width):
    """Fits with a PSF 3 % too wide have 1.4 % too much flux."""
    result = measured_pairs(0, width=width)
    single = ~np.isfinite(result["separation"])
    bias, chance = error(result, single)
    assert abs(bias) < max(0.1, SIGMAS * chance)
    assert pulls(result, single) == pytest.approx(1, abs=0.1)
    psf_error = 100 * np.median(result["psf_error"][single])
    assert abs(psf_error) < 0.3 if width == 1 else psf_error > 1


# ---- pairs at known positions --------------------------------------------------------------------

# Largest bias in per cent by contrast and separation. Beside a brighter star, the fit moves the
# fainter one: by the spline's error, which is there without noise, too.
REACHED = {
    0: dict.fromkeys(SEPARATIONS, 0.5),
    2: {1.0: 2.0, 1.25: 1.0, 1.5: 0.5, 2.0: 0.5, 3.0: 0.5, 4.0: 0.5},
    5: {1.5: 4.0, 2.0: 2.0, 3.0: 0.5, 4.0: 0.5},
}


@pytest.mark.parametrize("contrast", REACHED)
def test_pairs_at_known_positions(contrast):
    result = measured_pairs(contrast)
    for separation, largest in REACHED[contrast].items():
        rows = targets(result, contrast, separation)
        assert np.sum(rows) > 150
        assert abs(error(result, rows)[0]) < largest
        if separation <= 2:
            assert error(result, rows, "flux_ap_raw")[0] > 5 * largest


@pytest.mark.parametrize("contrast", [0, 2])
def test_errors_of_pairs_at_known_positions(contrast):
    """Those of the neighbours' fluxes are included, those of the positions are not: see 1 FWHM."""
    result = measured_pairs(contrast)
    assert np.all(result["flux_neighbour_err"][targets(result, contrast, 1.0)] > 0)
    far = targets(result, contrast) & np.asarray(result["separation"] >= 1.5)
    assert pulls(result, far) == pytest.approx(1, abs=0.1)
    assert pulls(result, targets(result, contrast, 1.25)) == pytest.approx(1.1, abs=0.15)
    assert 1 < pulls(result, targets(result, contrast, 1.0)) < 1.6


def test_errors_of_pairs_at_exact_positions():
    scene = pairs(0)
    result = measure(scene, scene.table, fit_positions=False)
    for separation in SEPARATIONS:
        assert pulls(result, targets(result, 0, separation)) == pytest.approx(1, abs=0.15)
    assert pulls(result, targets(result, 0)) == pytest.approx(1, abs=0.1)


@pytest.mark.fresh_seed
def test_other_pairs_at_known_positions(seed):
    result = measured_pairs(0, seed=seed)
    for separation in SEPARATIONS:
        bias, chance = error(result, targets(result, 0, separation))
        assert abs(bias) < max(0.5, SIGMAS * chance)
    far = targets(result, 0) & np.asarray(result["separation"] >= 1.5)
    assert pulls(result, far) == pytest.approx(1, abs=0.15)


def test_seeds_with_the_neighbours_light_are_too_bright():
    """Seeds are scaled to totals, with what they contain: too much is subtracted.

    If the aperture has a fraction e of the neighbour's light too much, the neighbour's seed has
    the same of the target, and e^2 of the target is missing. Seeds without the neighbours,
    such as fitted fluxes, have no such error.
    """
    result = measured_pairs(0, seeds="aperture")
    for separation, largest in zip(SEPARATIONS, [1.5, 0.5, 0.5, 0.5, 0.5, 0.5], strict=True):
        rows = targets(result, 0, separation)
        excess = error(result, rows, "flux_ap_raw")[0] / 100
        assert error(result, rows)[0] == pytest.approx(-100 * excess**2, abs=largest)


def test_wrong_psf_enters_with_the_neighbours_light():
    """A PSF 3 % too wide: good to 0.5 % from 2 FWHM on, or 3 beside brighter stars.

    Nearer than that, a twentieth of the neighbour's light is left, a tenth at 2 FWHM.
    """
    for contrast, good in [(0, 2.0), (2, 3.0), (5, 4.0)]:
        result = measured_pairs(contrast, width=1.03)
        for separation in SEPARATIONS:
            rows = targets(result, contrast, separation)
            bias, plain = error(result, rows)[0], error(result, rows, "flux_ap_raw")[0]
            if separation >= good:
                assert abs(bias) < 0.5
            elif contrast < 5:
                assert abs(bias) < 0.12 * plain


# ---- detected pairs ------------------------------------------------------------------------------

# Separation in FWHM from which on SEP finds both stars. Nearer ones are far above the noise, but
# there is no saddle between them, or none that its deblending takes for one.
SEPARATED = {0: 1.5, 2: 3.0, 5: 4.0}


@pytest.mark.parametrize("contrast", SEPARATED)
def test_what_the_detection_separates(contrast):
    result, scene = measured_pairs(contrast, detected=True, seeds="aperture"), pairs(contrast)
    for separation in SEPARATIONS:
        exist = np.sum(scene.table["fainter"] & (scene.table["separation"] == separation))
        share = np.sum(result["fainter"] & (result["separation"] == separation)) / exist
        assert share > 0.85 if separation >= SEPARATED[contrast] else share < 0.15


@pytest.mark.parametrize("contrast", SEPARATED)
@pytest.mark.parametrize("seeds", ["psf", "aperture"])
def test_pairs_that_are_detected(contrast, seeds):
    """Seeds in apertures are as good as others from 2 FWHM on."""
    result = measured_pairs(contrast, detected=True, seeds=seeds)
    nearest = 2.0 if seeds == "aperture" else SEPARATED[contrast]
    used = [each for each in SEPARATIONS if each >= max(nearest, SEPARATED[contrast])]
    for separation in used:
        assert abs(error(result, targets(result, contrast, separation))[0]) < 0.5
    rows = targets(result, contrast) & np.isin(result["separation"], used)
    assert pulls(result, rows) == pytest.approx(1, abs=0.1)


# ---- crowded fields, masks, PSFs that vary -------------------------------------------------------


@pytest.mark.parametrize(("density", "side"), [(0.005, 500), (0.01, 360), (0.02, 220)])
def test_crowded_fields(density, side):
    """At 0.02 stars a pixel, half of them have another one within 1.1 FWHM."""
    scene = crowding.crowd(density, side)
    result = measure(scene, known_positions(scene))
    inside = np.all([(result[a] > 15) & (result[a] < side - 15) for a in "xy"], axis=0)
    rows = inside & (scene.table["flux"][result["star"]] > flux_of(50))
    measured = np.asarray(rows & np.isfinite(result["flux"]))  # unless the fit has no flux
    assert np.sum(measured) > 0.99 * np.sum(rows)
    bias, plain = error(result, measured)[0], error(result, measured, "flux_ap_raw")[0]
    assert abs(bias) < 0.5
    assert plain > max(1, 10 * abs(bias))
    assert abs(error(result, measured & np.asarray(result["separation"] > 1))[0]) < 0.5
    assert pulls(result, measured & np.asarray(result["separation"] > 1.5)) < 1.2


def test_targets_with_masked_pixels():
    """Two pixels are masked beside the centre of every second star: the model loses them, too."""
    scene = pairs(0)
    table = scene.table
    masked = np.arange(len(table)) % 2 == 0
    angle = np.random.default_rng(3).uniform(0, 2 * np.pi, len(table))
    row = np.rint(table["y"] + 2 * np.sin(angle)).astype(int)[masked]
    column = np.rint(table["x"] + 2 * np.cos(angle)).astype(int)[masked]
    mask = np.zeros(scene.image.shape, bool)
    mask[row, column] = mask[row, column + 1] = True
    result = measure(scene, known_positions(scene), mask=mask)
    rows = masked[result["star"]] & np.asarray(result["separation"] >= 1.5)
    assert np.all(result["flags"][rows] & 0x1000)
    bias, chance = error(result, rows)
    assert abs(bias) < max(0.3, SIGMAS * chance)
    assert pulls(result, rows) == pytest.approx(1.1, abs=0.15)


def test_ratio_field_follows_a_psf_that_varies(tmp_path):
    """Seeds within 2 pixels lose a share that grows by a third across the field.

    The fainter star, by 2 magnitudes at 1.5 FWHM, has 60 % too much in a plain aperture. With the
    median ratio, too much of that is subtracted on one side of the field, too little on the other.
    """
    pytest.importorskip("galsim")
    bias = {
        correction: bias_across_field(tmp_path / f"{correction}.psf", correction)
        for correction in ("ratio_field", "fixed")
    }
    assert np.max(np.abs(bias["ratio_field"])) < 2.0
    assert np.ptp(bias["ratio_field"]) < 1.5
    assert bias["fixed"][0] < -3
    assert bias["fixed"][-1] > 2


def bias_across_field(path, correction, n_side=30, cell=37):
    """In per cent, of fainter stars in the corner of narrow ones, the middle, and that of wide."""
    side, rng = n_side * cell, np.random.default_rng(6)
    truth.write_varying_psf(path, FWHM, side)
    row, column = np.divmod(np.arange(n_side**2), n_side)
    bright = np.stack([column, row]) * cell + cell // 2 + rng.uniform(-0.5, 0.5, (2, n_side**2))
    angle = rng.uniform(0, 2 * np.pi, n_side**2)
    faint = bright + 1.5 * FWHM * np.stack([np.cos(angle), np.sin(angle)])
    faint = faint[:, ::3]  # beside every third star
    fluxes = flux_of(100) * 10**0.8, flux_of(100)
    light = [
        truth.draw_psfex_stars(
            path, Table({"x": x, "y": y, "flux": np.full(len(x), flux)}), side, 27
        )
        for (x, y), flux in zip((bright, faint), fluxes, strict=True)
    ]
    mean = light[0] + light[1] + SKY
    common = {"err": np.sqrt(mean), "bg": SKY, "backend": "numpy"}
    image, psf = rng.poisson(mean).astype(float), gpuphot.load_psf(path)
    start = Table(dict(zip("xy", np.concatenate([bright, faint], axis=1), strict=True)))
    fit = gpuphot.measure_objects_sep(start, image, psf=psf, **common)
    at, target = Table({"x": fit["x_psf"], "y": fit["y_psf"]}), np.arange(len(fit)) >= n_side**2
    seeds = gpuphot.measure_objects_sep(at, image, aper=2.0, **common)
    result = gpuphot.measure_aperture_deblended(
        image, at["x"], at["y"], RADIUS, psf, flux_seed=seeds["flux"], flux_psf=fit["flux"],
        flux_psf_err=fit["fluxerr"], target=target, aperture_correction=correction, **common,
    )  # fmt: skip
    own = gpuphot.measure_objects_sep(at[target], light[1] + SKY, aper=RADIUS, **common)
    ratio, place = result["flux"] / own["flux"], result["x"] + result["y"]
    thirds = np.digitize(place, np.quantile(place, [1 / 3, 2 / 3]))
    return [100 * np.median(ratio[thirds == third]) - 100 for third in range(3)]
