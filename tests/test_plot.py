"""Pictures: what is drawn is what is in the image and in the table."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData
from astropy.table import MaskedColumn, QTable, Table
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import gpuphot
from gpuphot import Flag, plot
from gpuphot.models.psf import as_psf_model

from .psfs import make_psf

SHAPE = (60, 80)
FLAGS = [0, 0, Flag.MASKED, Flag.MASKED | Flag.NO_FIT, 16, 0x100, Flag.INVALID]


@pytest.fixture
def image(rng):
    return rng.normal(100, 5, SHAPE)


@pytest.fixture
def table(rng):
    n = len(FLAGS)
    return Table(
        {
            "x": rng.uniform(0, SHAPE[1] - 1, n),
            "y": rng.uniform(0, SHAPE[0] - 1, n),
            "flags": np.array(FLAGS),
            "mag": rng.uniform(-12, -5, n),
            "magerr": rng.uniform(0.001, 0.1, n),
        }
    )


@pytest.fixture
def stars(rng):
    """Positions, some exactly between pixels and some off the image, and fluxes."""
    x, y = rng.uniform(-5, SHAPE[1] + 5, 60), rng.uniform(-5, SHAPE[0] + 5, 60)
    x[:20], y[:20] = np.floor(x[:20]) + 0.5, np.floor(y[:20]) + 0.5
    return x, y, rng.uniform(500, 5000, 60)


def circles(axes):
    """Colour, positions and diameters of the circles, group by group."""
    return [
        (to_hex(c.get_edgecolor()[0]), np.asarray(c.get_offsets()), c.get_widths())
        for c in axes.collections
        if isinstance(c, EllipseCollection)
    ]


def legend(axes):
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def shown(axes):
    (found,) = axes.images
    return found.get_array()


def save(axes, tmp_path):
    """Every picture becomes a file, without a warning; its size in pixels."""
    path = tmp_path / "plot.png"
    axes.figure.savefig(path, dpi=50)
    with Image.open(path) as picture:
        return picture.size


# The field


@pytest.mark.fresh_seed
def test_field_shows_the_image_and_the_apertures_by_flag(image, table, tmp_path):
    axes = plot.plot_field(image, table, 3.5)
    np.testing.assert_array_equal(shown(axes), image)
    assert legend(axes) == [
        "no flag (2)", "flagged by SEP (1)", "MASKED (2)", "INVALID (1)", "NO_FIT (1)",
        "other flag (1)",
    ]  # fmt: skip
    drawn = circles(axes)
    expected = [[0, 1], [4], [2, 3], [6], [3], [5]]
    assert len({color for color, _, _ in drawn}) == len(drawn) == len(expected)
    for (_, offsets, widths), rows in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(offsets, np.column_stack([table["x"], table["y"]])[rows])
        np.testing.assert_array_equal(widths, 7.0)
    assert axes.get_title() == "7 sources, apertures of radius 3.5 pixels"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x [pixels]", "y [pixels]")
    assert axes.get_xlim() == (-0.5, 79.5)
    assert axes.get_ylim() == (-0.5, 59.5)
    assert save(axes, tmp_path)[0] == 450
    assert axes.figure.dpi == 150


@pytest.mark.fresh_seed
def test_every_flag_has_a_colour(image, tmp_path):
    table = Table({"x": np.full(5, 20.0), "y": np.full(5, 20.0), "flags": [int(f) for f in Flag]})
    axes = plot.plot_field(image, table)
    assert legend(axes) == [f"{flag.name} (1)" for flag in Flag]
    assert len({color for color, _, _ in circles(axes)}) == len(Flag)
    save(axes, tmp_path)


@pytest.mark.fresh_seed
def test_circles_have_a_size_on_paper_without_radius(image, table, tmp_path):
    axes = plot.plot_field(image, table["x", "y"])
    assert legend(axes) == ["no flag (7)"]
    (collection,) = axes.collections
    assert collection._units == "points"
    assert axes.get_title() == "7 sources"
    save(axes, tmp_path)


@pytest.mark.fresh_seed
def test_rows_without_position_are_not_drawn(image, table):
    table["x"][0] = np.nan
    table["y"] = MaskedColumn(table["y"], mask=np.arange(len(table)) == 2)
    axes = plot.plot_field(image, table, 3)
    assert legend(axes)[0] == "no flag (1)"
    assert sum(len(offsets) for _, offsets, _ in circles(axes)) == 6  # one of them twice


@pytest.mark.fresh_seed
def test_masked_pixels_have_a_colour_of_their_own(image, table, tmp_path):
    mask = np.zeros(SHAPE, bool)
    mask[3, 4] = True
    image[5, 6], image[7, 8] = np.nan, np.inf
    masked = np.ma.masked_array(image, np.zeros(SHAPE, bool))
    masked[9, 10] = np.ma.masked
    axes = plot.plot_field(masked, table, 3, mask=mask)
    assert np.argwhere(shown(axes).mask).tolist() == [[3, 4], [5, 6], [7, 8], [9, 10]]
    assert legend(axes)[-1] == "masked pixels"
    assert to_hex(axes.images[0].get_cmap().get_bad()) == plot._BAD_PIXEL_COLOR
    save(axes, tmp_path)


@pytest.mark.parametrize("value", [np.nan, 0.0, 7.0])
def test_images_without_contrast_are_drawn(value, tmp_path):
    image = np.full(SHAPE, value)
    axes = plot.plot_field(image, Table({"x": [], "y": []}), 3)
    assert circles(axes) == []
    assert legend(axes) == (["masked pixels"] if np.isnan(value) else [])
    save(axes, tmp_path)
    panels = plot.plot_residual(image, 3.0, [], [], [])
    save(panels[0], tmp_path)


def test_large_images_are_averaged_in_blocks(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(100, 5, (130, 5001)).astype(">f4")
    image[:3, 3:6], image[0, 0] = np.nan, np.nan
    axes = plot.plot_field(image, Table({"x": [4990.0], "y": [100.0]}), 3)
    blocks = shown(axes)
    assert blocks.shape == (44, 1667)
    assert np.argwhere(blocks.mask).tolist() == [[0, 1]]
    np.testing.assert_allclose(blocks[10, 20], image[30:33, 60:63].mean(), rtol=1e-6)
    np.testing.assert_allclose(blocks[0, 0], np.nanmean(image[:3, :3]), rtol=1e-6)
    np.testing.assert_allclose(blocks[-1, -1], image[129:, 4998:].mean(), rtol=1e-6)
    assert axes.images[0].get_extent() == [-0.5, 5000.5, -0.5, 131.5]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 5000.5), (-0.5, 129.5))
    width, height = save(axes, tmp_path)
    assert height < width / 2


def test_many_sources_are_one_collection_a_flag(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 80, (2, 20_000))
    table = Table({"x": x, "y": y, "mag": -x, "magerr": (1 + y) / 1000})
    table["flags"] = np.where(x < 20, int(Flag.MASKED), 0)
    axes = plot.plot_field(np.zeros(SHAPE), table, 1)
    assert len(axes.collections) == 2
    save(axes, tmp_path)
    axes = plot.plot_magnitude_errors(table)
    assert [line.get_rasterized() for line in axes.get_lines()[:2]] == [True, True]
    save(axes, tmp_path)


@pytest.mark.fresh_seed
def test_containers_of_other_packages_are_drawn(image, table):
    quantities = QTable(table)
    for name in ("x", "y"):
        quantities[name].unit = u.pix
    axes = plot.plot_field(CCDData(image, unit="adu", mask=image > 105), quantities, 3)
    np.testing.assert_array_equal(shown(axes).mask, image > 105)
    assert sum(len(offsets) for _, offsets, _ in circles(axes)) == 8


# Magnitude errors


@pytest.mark.fresh_seed
def test_magnitude_errors_by_flag(table, tmp_path):
    table["mag"].unit = table["magerr"].unit = u.mag
    for each in (table, QTable(table)):
        axes = plot.plot_magnitude_errors(each)
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert legend(axes) == [
            "no flag (2)", "flagged by SEP (1)", "MASKED (2)", "INVALID (1)", "NO_FIT (1)",
            "other flag (1)",
        ]  # fmt: skip
        expected = np.column_stack([table["mag"], table["magerr"]])[[2, 3]]
        np.testing.assert_array_equal(lines["MASKED (2)"].get_xydata(), expected)
        assert axes.get_yscale() == "log"
        assert axes.get_xlabel() == "Instrumental magnitude [mag]"
        assert [text.get_text() for text in axes.texts] == ["S/N 10", "S/N 100", "S/N 1000"]
        save(axes, tmp_path)


@pytest.mark.fresh_seed
def test_rows_without_magnitude_are_not_drawn(table):
    table["mag"][0] = np.nan
    table["magerr"] = MaskedColumn(table["magerr"], mask=np.arange(len(table)) == 2)
    table["magerr"][4] = 0
    axes = plot.plot_magnitude_errors(table)
    assert legend(axes) == [
        "no flag (1)", "MASKED (1)", "INVALID (1)", "NO_FIT (1)", "other flag (1)",
    ]  # fmt: skip


def test_no_magnitudes_are_an_empty_plot(tmp_path):
    empty = Table({"mag": [], "magerr": []})
    nothing = Table({"mag": [np.nan], "magerr": [np.nan]})
    for table in (empty, nothing):
        axes = plot.plot_magnitude_errors(table)
        assert legend(axes) == []
        save(axes, tmp_path)


# Growth curves


@pytest.mark.fresh_seed
def test_growth_curve_is_what_measure_objects_measures(image, backend, tmp_path):
    x, y = 30.3, 41.7
    image = gpuphot.place_psf_stamps(image, 3.0, [x], [y], 20_000.0)
    mask = np.zeros(SHAPE, bool)
    mask[:, 60:] = True
    options = {"mask": mask, "gain": 2.0, "bg_size": 20, "backend": backend}
    axes = plot.plot_growth_curve(image, x, y, 3.0, **options)
    radii, flux = axes.get_lines()[0].get_data()
    right = axes.figure.axes[1]
    ratio = right.get_lines()[0].get_ydata()
    assert (len(radii), radii[-1]) == (30, 12.0)
    for i in (0, 9, 29):
        star = Table({"x": [x], "y": [y]})
        result = gpuphot.measure_objects(star, image, aper=radii[i], **options)
        np.testing.assert_allclose(flux[i], result["flux"][0], rtol=1e-9)
        np.testing.assert_allclose(ratio[i], result["flux"][0] / result["fluxerr"][0], rtol=1e-9)
    assert axes.get_title() == "Growth curve of the star at x = 30.3, y = 41.7"
    assert axes.get_ylabel() == "Flux [counts]"
    best = radii[np.argmax(ratio)]
    assert right.texts[0].get_text() == f" highest S/N: {ratio.max():.1f} at {best:.1f} pixels"
    save(axes, tmp_path)


@pytest.mark.fresh_seed
def test_growth_curve_with_known_background_needs_no_other(image):
    masked = np.ones(SHAPE, bool)  # No background could be estimated from this
    masked[20:40, 20:40] = False
    axes = plot.plot_growth_curve(
        CCDData(image, unit="electron"), 30, 30, 3, mask=masked, bg=100.0, err=5.0, max_radius=5
    )
    radii = axes.get_lines()[0].get_xdata()
    assert radii[-1] == 5
    assert axes.get_ylabel() == "Flux [electron]"


@pytest.mark.fresh_seed
def test_growth_curve_at_a_position_of_a_qtable(image):
    axes = plot.plot_growth_curve(image, 30 * u.pix, 20 * u.pix, 3, bg_size=20)
    assert axes.get_title().endswith("x = 30.0, y = 20.0")
    with pytest.raises(u.UnitConversionError, match="'deg'"):
        plot.plot_growth_curve(image, 30 * u.deg, 20 * u.deg, 3)


def test_growth_curve_without_noise_or_on_the_edge(tmp_path):
    image = np.zeros(SHAPE)
    axes = plot.plot_growth_curve(image, 30, 30, 3, bg=0.0, err=0.0)
    assert np.isnan(axes.figure.axes[1].get_lines()[0].get_ydata()).all()
    save(axes, tmp_path)
    axes = plot.plot_growth_curve(image, -2.0, -3.0, 3, bg=0.0, err=1.0)
    flux = axes.get_lines()[0].get_ydata()
    assert np.isnan(flux[0])
    assert np.isfinite(flux[-1])
    save(axes, tmp_path)


# Residuals


def gridded():
    """A model with a node in each corner of the image, all different."""
    planes = np.stack([as_psf_model(make_psf(25, 25, 1.0, 0, seed=k)).planes[0] for k in range(4)])
    planes *= np.array([1.0, 1.1, 1.2, 0.9])[:, None, None]
    return gpuphot.PSFModel(
        planes=planes, sampling=1.0, width=25, height=25,
        grid_x=np.array([0.0, 80.0]), grid_y=np.array([0.0, 60.0]),
    )  # fmt: skip


PSFS = {
    "Gaussian": 3.0,
    "polynomial": make_psf(45, 39, 1 / 3, 2),
    "grid": gridded(),
}


@pytest.mark.parametrize("name", PSFS)
@pytest.mark.parametrize("center", [None, (40, 30), (41.3, 30.8), (2, 57), (-3, 30)])
def test_residual_is_the_image_less_its_model(image, stars, name, center):
    psf = PSFS[name]
    size = None if center is None else 21
    axes = plot.plot_residual(image, psf, *stars, center=center, size=size)
    full = image - gpuphot.render_psf_image(psf, *stars, SHAPE)
    left, right, bottom, top = (round(edge + 0.5) for edge in axes[0].images[0].get_extent())
    window = slice(bottom, top), slice(left, right)
    if center is None:
        assert (left, right, bottom, top) == (0, 80, 0, 60)
    elif center == (40, 30):
        assert (left, right, bottom, top) == (30, 51, 20, 41)
    np.testing.assert_array_equal(shown(axes[0]), image[window])
    np.testing.assert_allclose(shown(axes[1]), full[window], rtol=0, atol=1e-9)
    assert [each.get_title() for each in axes] == ["Image", "Less all stars"]
    assert axes[0].images[0].norm is axes[1].images[0].norm


@pytest.mark.fresh_seed
def test_residual_of_a_target_keeps_the_target(image, stars, backend, tmp_path):
    x, y, flux = stars
    x[7], y[7] = 30.2, 25.0
    axes = plot.plot_residual(image, 3.0, x, y, flux, target=7, backend=backend)
    assert [a.get_title() for a in axes] == ["Image", "Less the neighbours", "Less all stars"]
    others = np.arange(60) != 7
    light = gpuphot.render_psf_image(3.0, x[others], y[others], flux[others], SHAPE)
    left, right, bottom, top = (round(edge + 0.5) for edge in axes[0].images[0].get_extent())
    assert (left, right, bottom, top) == (12, 50, 7, 45)  # Twice the stamp of 19 pixels
    window = slice(bottom, top), slice(left, right)
    np.testing.assert_allclose(shown(axes[1]), (image - light)[window], rtol=0, atol=1e-9)
    save(axes[0], tmp_path)


@pytest.mark.fresh_seed
def test_residual_of_other_inputs(image, stars):
    x, y, flux = stars
    flux[3], x[4] = np.nan, np.nan
    image[10, 10] = np.nan
    before = image.copy(), x.copy(), y.copy(), flux.copy()
    axes = plot.plot_residual(
        CCDData(image, unit="adu"),
        make_psf(25, 25, 1.0, 0), MaskedColumn(x, mask=np.arange(60) == 5), y, flux * u.adu,
    )  # fmt: skip
    x[5] = np.nan
    expected = image - gpuphot.render_psf_image(make_psf(25, 25, 1.0, 0), x, y, flux, SHAPE)
    assert np.argwhere(shown(axes[1]).mask).tolist() == [[10, 10]]
    np.testing.assert_allclose(shown(axes[1]).filled(np.nan), expected, rtol=0, atol=1e-9)
    assert axes[0].figure.axes[-1].get_ylabel() == "adu"
    x[5] = before[1][5]
    for now, then in zip((image, x, y, flux), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
@pytest.mark.fresh_seed
def test_arrays_on_a_gpu_are_drawn(image, stars, table, ops, backend):
    expected = plot.plot_residual(image, 3.0, *stars)
    on_gpu = ops.to_device(image)
    axes = plot.plot_residual(on_gpu, 3.0, *map(ops.to_device, stars))
    np.testing.assert_allclose(shown(axes[1]), shown(expected[1]), rtol=0, atol=1e-9)
    field = plot.plot_field(on_gpu, table, mask=ops.to_device(image > 105))
    np.testing.assert_array_equal(shown(field).mask, image > 105)
    curve = plot.plot_growth_curve(on_gpu, 30, 30, 3, bg=100.0, err=ops.to_device(image))
    assert np.isfinite(curve.get_lines()[0].get_ydata()).all()


# Axes, matplotlib


@pytest.mark.fresh_seed
def test_plots_go_into_the_axes_of_the_caller(image, stars, table, tmp_path):
    figure = Figure(figsize=(12, 8), layout="constrained")
    grid = figure.subplots(2, 3)
    assert plot.plot_field(image, table, 3, axes=grid[0, 0]) is grid[0, 0]
    assert plot.plot_magnitude_errors(table, axes=grid[0, 1]) is grid[0, 1]
    assert plot.plot_growth_curve(image, 30, 30, 3, bg_size=20, axes=grid[0, 2]) is grid[0, 2]
    panels = plot.plot_residual(image, 3.0, *stars, target=30, axes=grid[1])
    assert list(panels) == list(grid[1])
    save(grid[0, 0], tmp_path)


SCRIPT = """
    import sys
    from gpuphot import plot
    assert not [name for name in sys.modules if name.startswith("matplotlib")]
    import numpy as np
    from astropy.table import Table
    image = np.random.default_rng(0).normal(0, 1, (50, 50))
    table = Table({"x": [20.0], "y": [20.0], "mag": [3.0], "magerr": [0.1]})
    made = [
        plot.plot_field(image, table, 3),
        plot.plot_magnitude_errors(table),
        plot.plot_growth_curve(image, 20, 20, 3, bg=0, err=1),
        plot.plot_residual(image, 3, [20], [20], [1])[0],
    ]
    for axes in made:
        axes.figure.savefig(sys.argv[1])
    assert "matplotlib.pyplot" not in sys.modules
"""


def test_pyplot_is_never_imported(tmp_path):
    script = [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT)]
    subprocess.run([*script, tmp_path / "plot.png"], check=True)


def test_missing_matplotlib_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    image, table = np.zeros(SHAPE), Table({"x": [1], "y": [1], "mag": [1], "magerr": [1]})
    calls = [
        lambda: plot.plot_field(image, table),
        lambda: plot.plot_magnitude_errors(table),
        lambda: plot.plot_growth_curve(image, 9, 9, 3, bg=0, err=1),
        lambda: plot.plot_residual(image, 3, [1], [1], [1]),
    ]
    for call in calls:
        with pytest.raises(ImportError, match=r"plots need matplotlib: pip install \"gpuphot-sur"):
            call()


# Bad input

ZEROS, ONE = np.zeros(SHAPE), [1.0]
TABLE = Table({"x": [1.0], "y": [1.0], "mag": [1.0], "magerr": [0.1]})
IN_DEGREES = Table({"x": [1.0] * u.deg, "y": [1.0]})
ODD_FLAGS = Table({"x": [1.0], "y": [1.0], "flags": [0.5]})


def field(image=ZEROS, table=TABLE, r=3, **options):
    plot.plot_field(image, table, r, **options)


def errors(table=TABLE, **options):
    plot.plot_magnitude_errors(table, **options)


def curve(image=ZEROS, x=9, y=9, fwhm=3, bg=0.0, err=1.0, **options):
    plot.plot_growth_curve(image, x, y, fwhm, bg=bg, err=err, **options)


def residual(image=ZEROS, psf=3.0, x=ONE, y=ONE, flux=ONE, **options):
    plot.plot_residual(image, psf, x, y, flux, **options)


REFUSED = [
    (field, {"image": np.zeros(5)}, ValueError, r"image must be a 2-D .*\(5,\)"),
    (field, {"image": "m13.fits"}, TypeError, "image must be .*'m13.fits'"),
    (field, {"mask": np.ones((3, 3))}, ValueError, r"mask must .*\(3, 3\)"),
    (field, {"table": [1, 2]}, TypeError, "table must be an astropy Table.*list"),
    (field, {"table": Table({"x": [1.0]})}, ValueError, "table must have columns 'x' and 'y'"),
    (field, {"table": IN_DEGREES}, ValueError, "'x' of table must be in pixels.*deg"),
    (field, {"table": ODD_FLAGS}, ValueError, "column 'flags'"),
    (field, {"r": 0}, ValueError, "r must be a positive number, got 0"),
    (field, {"r": "3"}, TypeError, "r must be a positive number, got '3'"),
    (field, {"r": [3, 4]}, TypeError, "r must be a positive number"),
    (field, {"axes": "here"}, TypeError, "axes must be an Axes of matplotlib, got 'here'"),
    (field, {"axes": Figure()}, TypeError, "axes must be an Axes of matplotlib, got <Figure"),
    (errors, {"table": IN_DEGREES}, ValueError, "columns 'mag' and 'magerr', got only"),
    (errors, {"table": Table({"mag": ["a"], "magerr": [1]})}, TypeError, "'mag' of table"),
    (errors, {"axes": 3}, TypeError, "axes must be an Axes"),
    (curve, {"image": np.zeros(5)}, ValueError, "image must be a 2-D"),
    (curve, {"x": "a"}, TypeError, "x and y must be a number, got 'a'"),
    (curve, {"y": np.nan}, ValueError, "x and y must be finite"),
    (curve, {"x": 500}, ValueError, "x and y must lie on the image of 60 x 80 .*x = 500, y = 9"),
    (curve, {"y": -50}, ValueError, "x and y must lie on the image"),
    (curve, {"fwhm": 0}, ValueError, "fwhm must be a positive number, got 0"),
    (curve, {"max_radius": -1}, ValueError, "max_radius must be a positive number, got -1"),
    (curve, {"bg": np.ones((3, 3))}, ValueError, r"bg must .*\(3, 3\)"),
    (curve, {"backend": "torch"}, ValueError, "backend must be one of"),
    (residual, {"image": np.zeros(5)}, ValueError, "image must be a 2-D"),
    (residual, {"psf": None}, TypeError, "psf must be"),
    (residual, {"psf": -1.0}, ValueError, "the FWHM of psf"),
    (residual, {"x": [1.0, 2.0]}, ValueError, "y must be a 1-D array of 2"),
    (residual, {"flux": [1.0, 2.0]}, ValueError, "flux must be a 1-D array of 1"),
    (residual, {"target": 1}, ValueError, "target must be a row of the 1 stars, got 1"),
    (residual, {"target": -1}, ValueError, "target must be an integer of at least 0, got -1"),
    (residual, {"target": 0.5}, TypeError, "target must be an integer"),
    (residual, {"target": 0, "x": [np.nan]}, ValueError, "position of target must be finite"),
    (residual, {"target": 0, "x": [900.0]}, ValueError, "position of target must lie on the image"),
    (residual, {"center": 3}, ValueError, r"center must be a position \(x, y\), got 3"),
    (residual, {"center": (1, 2, 3)}, ValueError, r"center must be a position \(x, y\)"),
    (residual, {"center": (-90, 3)}, ValueError, "center must lie on the image"),
    (residual, {"size": 0}, ValueError, "size must be an integer of at least 1, got 0"),
    (residual, {"size": 3.5}, TypeError, r"size must be an integer of at least 1, got 3\.5"),
    (residual, {"backend": "torch"}, ValueError, "backend must be one of"),
    (residual, {"axes": [1, 2]}, TypeError, r"axes must be 2 Axes of matplotlib, got \[1, 2\]"),
]


@pytest.mark.parametrize(("call", "options", "error", "message"), REFUSED)
def test_bad_input_is_refused(call, options, error, message):
    with pytest.raises(error, match=message):
        call(**options)
