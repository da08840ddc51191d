"""FITS images as people have them: which image, complete or not, and what its header says."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from pathlib import Path

import astropy
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, DistortionLookupTable

from gpuphot.headers import header_facts, key_facts
from gpuphot.images import errors_of_weights, read_image, read_plane

SHAPE = (30, 40)
DATA = Path(__file__).parents[2] / "shared" / "data"
M13 = Path(astropy.__file__).parent / "io/fits/hdu/compressed/tests/data"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.fits"


@pytest.fixture
def pixels(rng):
    return rng.normal(100, 10, SHAPE).astype(np.float32)


def celestial(ctype=("RA---TAN", "DEC--TAN")):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ctype
    wcs.wcs.crval = 150.0, 2.0
    wcs.wcs.crpix = 20.0, 15.0
    wcs.wcs.cdelt = -1e-4, 1e-4
    return wcs.to_header()


def header_of(**cards):
    header = fits.Header()
    for name, value in cards.items():
        header[name.replace("_", "-")] = value
    return header


def raw_header(*cards):
    return fits.Header.fromstring("".join(card.ljust(80) for card in cards))


def write(path, *hdus):
    """Write HDUs behind an empty primary one, unless the first is a primary one."""
    first = () if isinstance(hdus[0], fits.PrimaryHDU) else (fits.PrimaryHDU(),)
    fits.HDUList([*first, *hdus]).writeto(path)


def plane(value=0.0, name=None, shape=(4, 5), **options):
    return fits.ImageHDU(np.full(shape, float(value)), name=name, **options)


def refused(path, match, **options):
    """One sentence says what is wrong, without the path."""
    with pytest.raises(ValueError, match=match) as caught:
        read_image(path, **options)
    assert str(path) not in str(caught.value)
    assert "\n" not in str(caught.value)


# Pixels


@pytest.mark.fresh_seed
@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">i4", ">i8", "u1"])
def test_pixels_come_in_the_dtype_and_byte_order_of_the_file(path, rng, dtype):
    pixels = rng.integers(0, 200, SHAPE).astype(dtype)
    fits.writeto(path, pixels)
    image = read_image(path)
    assert image.data.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(image.data, pixels)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int8])
def test_integers_with_an_offset_are_unsigned_again(path, dtype):
    pixels = np.array([[np.iinfo(dtype).max, 0], [1, 2]], dtype)
    fits.writeto(path, pixels)
    image = read_image(path)
    assert image.data.dtype == dtype
    np.testing.assert_array_equal(image.data, pixels)


def test_scaled_integers_become_floats(path):
    hdu = fits.PrimaryHDU(np.array([[0, 1], [2, 3]], np.int16))
    hdu.header["BSCALE"], hdu.header["BZERO"] = 0.5, 10.0
    hdu.header["BLANK"] = 3
    hdu.writeto(path, output_verify="ignore")
    with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
        hdus[0].header["BSCALE"], hdus[0].header["BZERO"] = 0.5, 10.0
    np.testing.assert_array_equal(read_image(path).data, [[10, 10.5], [11, np.nan]])


def compress_in_memory(compress):
    return lambda path: path.write_bytes(compress(path.read_bytes()))


@pytest.mark.fresh_seed
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_file_is_the_same_image(path, pixels, compress):
    fits.writeto(path, pixels)
    path.write_bytes(compress(path.read_bytes()))
    np.testing.assert_array_equal(read_image(path).data, pixels)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1"])
def test_tile_compressed_image_is_the_same_image(tmp_path, kind):
    pixels = np.arange(1200, dtype=np.int32).reshape(SHAPE)
    path = tmp_path / "image.fits.fz"
    write(path, fits.CompImageHDU(pixels, compression_type=kind, tile_shape=SHAPE))
    np.testing.assert_array_equal(read_image(path).data, pixels)


@pytest.mark.parametrize("name", ["m13_rice", "m13_gzip", "m13_hcomp", "m13_plio"])
def test_variants_of_m13_are_the_same_image(name):
    if not M13.is_dir():
        pytest.skip("astropy is installed without its test data")
    image, other = read_image(M13 / "m13.fits"), read_image(M13 / f"{name}.fits")
    if name != "m13_hcomp":  # Lossy
        np.testing.assert_array_equal(other.data, image.data)
    assert other.wcs.wcs.compare(image.wcs.wcs)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 1, 4, 5), (1, 1, 5)])
def test_axes_of_one_pixel_are_left_out(path, shape):
    fits.writeto(path, np.zeros(shape), celestial())
    image = read_image(path)
    assert image.data.shape == shape[-2:]
    assert image.wcs.naxis == 2


# Which image


@pytest.mark.parametrize(
    ("hdus", "expected"),
    [
        ([plane(1, "ODD")], 1),
        ([plane(1, "CUBE", (2, 4, 5)), plane(2), fits.BinTableHDU(name="T")], 2),
        ([plane(1, "SCI"), plane(2, "ERR"), plane(3, "DQ")], 1),
        ([plane(1, "ERR"), plane(2, "SCI")], 2),
        ([fits.PrimaryHDU(np.ones((4, 5))), plane(2, "WHT")], 1),
        ([fits.PrimaryHDU(np.ones((4, 5))), plane(2, "SCI")], 2),
        ([fits.PrimaryHDU(np.ones((4, 5))), plane(2, "SCI"), plane(3, "SCI", ver=2)], 1),
        ([fits.PrimaryHDU(np.ones(7)), plane(2, "X")], 2),
    ],
)
def test_image_is_the_only_one_or_sci_or_the_primary(path, hdus, expected):
    write(path, *hdus)
    assert read_image(path).data[0, 0] == expected


@pytest.mark.parametrize(
    ("ext", "expected"),
    [("0", 1), ("1", 2), ("SCI", 2), ("sci", 2), ("SCI,2", 4), (" SCI , 2 ", 4), ("WHT", 3)],
)
def test_ext_is_a_number_a_name_or_a_name_with_its_version(path, ext, expected):
    primary = fits.PrimaryHDU(np.ones((4, 5)))
    write(path, primary, plane(2, "SCI"), plane(3, "WHT"), plane(4, "SCI", ver=2))
    assert read_image(path, ext).data[0, 0] == expected
    assert read_image(str(path), ext).data[0, 0] == expected


@pytest.mark.parametrize("ext", ["7", "XYZ", "SCI,3", "SCI,x", "", ",", "-1", "1,2"])
def test_ext_that_is_not_there_is_refused_with_what_there_is(path, ext):
    write(path, plane(1, "SCI"), plane(2, "SCI", ver=2), plane(3))
    refused(path, r"no extension .*only: 0 \(PRIMARY\), 1 \(SCI,1\), 2 \(SCI,2\), 3$", ext=ext)


@pytest.mark.parametrize("ext", ["0", "CUBE", "T"])
def test_ext_that_is_no_image_is_refused(path, ext):
    write(path, plane(1, "CUBE", (2, 4, 5)), fits.BinTableHDU(name="T"))
    refused(path, "is not a 2-D image", ext=ext)


def test_several_images_are_listed(path):
    write(path, plane(1, "S1"), plane(2, "S2"), plane(3))
    refused(path, r"choose one with --ext: 1 \(S1\), 2 \(S2\), 3$")


def test_long_list_of_images_is_cut(path):
    write(path, *[plane(1, f"S{number}") for number in range(40)])
    refused(path, r"12 \(S11\), and 28 more$")


@pytest.mark.parametrize(
    "hdus",
    [
        [fits.PrimaryHDU()],
        [fits.PrimaryHDU(np.ones(5)), plane(0, "CUBE", (2, 3, 4))],
        [fits.BinTableHDU.from_columns([fits.Column("x", "D", array=[1.0])])],
    ],
)
def test_file_without_image_is_refused(path, hdus):
    write(path, *hdus)
    refused(path, "it holds no 2-D image")


# Files that are not right


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")], ids=["empty", "gzip"])
def test_empty_file_is_refused(path, content):
    path.write_bytes(content)
    refused(path, "it is empty")


@pytest.mark.parametrize(
    "content",
    [b"x,y\n1,2\n", b"\x89PNG\r\n", bytes(9000), gzip.compress(b"x,y\n1,2\n"), b"SIM"],
    ids=["text", "PNG", "zeros", "gzip", "SIM"],
)
def test_file_that_is_not_fits_is_refused(path, content):
    path.write_bytes(content)
    refused(path, "it is not a FITS file")


def test_missing_file_directory_and_broken_link_are_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.fits")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)
    (tmp_path / "link.fits").symlink_to(tmp_path / "gone.fits")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "link.fits")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_file_that_may_not_be_read_is_an_error_of_the_system(path):
    fits.writeto(path, np.ones(SHAPE))
    path.chmod(0)
    with pytest.raises(PermissionError):
        read_image(path)


def plain_file():
    return fits.HDUList([fits.PrimaryHDU(np.ones((60, 60), np.float32))])


def extension_file():
    return fits.HDUList([fits.PrimaryHDU(np.ones((60, 60), np.float32)), plane(1, "WHT", (60, 60))])


def tiled_file():
    noise = np.random.default_rng(0).integers(0, 9999, (60, 60)).astype(np.int32)
    return fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(noise, name="SCI")])


def bytes_of(hdus):
    file = io.BytesIO()
    hdus.writeto(file)
    return file.getvalue()


def cut_places(hdus):
    """Places in each header and in all data, among them just before its end."""
    whole = bytes_of(hdus)
    with fits.open(io.BytesIO(whole), disable_image_compression=True) as written:
        for number, hdu in enumerate(written):
            info = hdu.fileinfo()
            header, data = info["hdrLoc"], info["datLoc"]
            yield from ([header + 8] if number else [])
            yield from (header + 100, header + 1000, data - 1)
            if hdu.size:
                yield from (data, data + 100, data + hdu.size // 2, data + hdu.size - 1)


@pytest.mark.parametrize("make", [plain_file, extension_file, tiled_file])
def test_truncated_file_is_refused_wherever_it_ends(path, make):
    whole = bytes_of(make())
    for end in cut_places(make()):
        path.write_bytes(whole[:end])
        refused(path, "truncated")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_truncated_compressed_file_is_refused_wherever_it_ends(path, compress):
    whole = compress(bytes_of(tiled_file()))
    for end in (20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(path, "truncated")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_file_that_was_truncated_before_it_was_compressed_is_refused(path, compress):
    path.write_bytes(compress(bytes_of(plain_file())[:-5000]))
    refused(path, "truncated")


def test_damaged_tiles_are_refused(path):
    content = bytearray(bytes_of(tiled_file()))
    with fits.open(io.BytesIO(content), disable_image_compression=True) as hdus:
        start = hdus[1].fileinfo()["datLoc"]
    content[start : start + 400] = b"\xff" * 400  # Lengths and places of the tiles
    path.write_bytes(content)
    refused(path, "truncated or damaged")


def test_damaged_gzip_is_refused(path):
    content = bytearray(gzip.compress(bytes_of(tiled_file())))
    content[200:300] = b"\xff" * 100
    path.write_bytes(content)
    refused(path, "truncated or damaged")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"BITPIX  =                  -32", b"BITPIX  =                  -33"),
        (b"BITPIX  =", b"BITPIY  ="),
        (b"NAXIS   =                    2", b"NAXIS   =                    x"),
        (b"NAXIS1  =                   60", b"NAXIS1  =                   -6"),
        (b"NAXIS1  =                   60", b"NAXIS1  = '60'                "),
        (b"SIMPLE  =                    T", b"SIMPLE  =                    F"),
        (b"NAXIS1  =                   60", b"NAXIS1  =               600000"),
        (b"NAXIS2  =", b"NAXIS3  ="),
    ],
)
def test_damaged_header_is_refused_in_one_sentence(path, old, new):
    content = bytes_of(plain_file())
    assert old in content
    path.write_bytes(content.replace(old, new))
    refused(path, ".")


@pytest.mark.parametrize("junk", [bytes(2880), b" " * 100, b"hello" * 1000, b"\x1a"])
def test_what_follows_the_last_hdu_is_no_news(path, junk):
    path.write_bytes(bytes_of(plain_file()) + junk)
    assert read_image(path).data.shape == (60, 60)


def test_last_block_need_not_be_full(path):
    content = bytes_of(plain_file())
    path.write_bytes(content[: 2880 + 60 * 60 * 4])
    assert np.all(read_image(path).data == 1)


# Header


def test_header_says_what_the_primary_header_says_besides(path):
    primary = fits.PrimaryHDU(header=header_of(OBJECT="M13", EXPTIME=30.0, FILTER="r"))
    primary.header["CRVAL1"] = 7.0
    primary.header["HIERARCH ESO DET OUT1 CONAD"] = 2.5
    primary.header["COMMENT"] = "only here"
    write(path, primary, plane(1, "SCI", header=header_of(FILTER="g", GAIN=1.5)))
    header = read_image(path).header
    assert (header["OBJECT"], header["EXPTIME"], header["GAIN"]) == ("M13", 30.0, 1.5)
    assert (header["FILTER"], header["EXTNAME"], header["NAXIS"]) == ("g", "SCI", 2)
    assert header["ESO DET OUT1 CONAD"] == 2.5
    assert "SIMPLE" not in header
    assert "CRVAL1" not in header
    assert "COMMENT" not in header


def test_header_that_inherits_nothing_stays_alone(path):
    primary = fits.PrimaryHDU(header=header_of(OBJECT="M13"))
    write(path, primary, plane(1, "SCI", header=header_of(INHERIT=False)))
    assert "OBJECT" not in read_image(path).header


def test_broken_cards_are_silent_and_only_unusable(path):
    cards = [
        "SIMPLE  =                    T", "BITPIX  =                    8",
        "NAXIS   =                    0", "GAIN    = 1.5e", "EXPTIME = abc def", "lower   = 3",
        "OBJECT  = 'unterminated", "AB?CD   = 1", "a card without an equals sign",
        "SATURATE= 1E400", "FILTER  = 'r'", "END",
    ]  # fmt: skip
    block = b"".join(card.ljust(80).encode() for card in cards).ljust(2880)
    path.write_bytes(block + bytes_of(fits.HDUList([fits.PrimaryHDU(), plane(3, "SCI")]))[2880:])
    image = read_image(path)
    assert image.data[0, 0] == 3
    facts = header_facts(image.header)
    assert (facts.gain, facts.saturation, facts.exposure) == (None, None, None)
    assert key_facts(image.header)["FILTER"] == "r"


# World coordinates


def test_world_coordinates_come_with_the_image(path):
    write(path, fits.PrimaryHDU(header=header_of(RADESYS="FK5")), plane(1, header=celestial()))
    image = read_image(path)
    assert image.wcs_problem == ""
    assert list(image.wcs.wcs.crval) == [150.0, 2.0]


def test_frame_may_be_in_the_primary_header(path):
    header = celestial()
    del header["RADESYS"]
    write(path, fits.PrimaryHDU(header=header_of(RADESYS="FK5", EQUINOX=2000.0)), plane(1))
    with fits.open(path, mode="update") as hdus:
        hdus[1].header.update(header)
    assert read_image(path).wcs.wcs.radesys == "FK5"


def test_lookup_table_of_the_file_is_part_of_the_world_coordinates(path):
    wcs, distorted = WCS(celestial()), WCS(celestial())
    shift = np.full((3, 3), 0.5, np.float32)
    distorted.cpdis1 = DistortionLookupTable(shift, (1, 1), (1, 1), (20, 15))
    distorted.cpdis2 = DistortionLookupTable(2 * shift, (1, 1), (1, 1), (20, 15))
    header, *tables = distorted.to_fits(relax=True)
    write(path, fits.PrimaryHDU(np.ones(SHAPE, np.float32), header.header), *tables)
    image = read_image(path, "0")
    shifted = image.wcs.all_pix2world(10.0, 10.0, 0)
    np.testing.assert_allclose(shifted, wcs.all_pix2world(10.5, 11.0, 0), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        (
            {"CTYPE1": "PIXEL", "CTYPE2": "PIXEL", "CUNIT1": "", "CUNIT2": ""},
            "no celestial coordinates",
        ),
        ({"CTYPE2": ""}, "broken"),
        ({"CTYPE2": "RA---TAN"}, "broken"),
        ({"CTYPE2": "DEC--SIN"}, "broken"),
        ({"CDELT1": 0.0}, "broken"),
        ({"CRVAL2": "north"}, "broken"),
        ({"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN"}, "broken"),
        ({"RADESYS": "GAPPT"}, "broken"),
        ({"CUNIT1": "furlong"}, "broken"),
        ({"A_ORDER": 2, "A_2_0": 1e-5}, "broken"),
        ({"CPDIS1": "LOOKUP"}, "broken"),
        ({"CPDIS1": "POLYNOMIAL"}, "broken"),
    ],
)
def test_image_without_usable_world_coordinates_is_read_and_says_why(path, change, problem):
    header = celestial()
    header.update(change)
    fits.writeto(path, np.ones(SHAPE), header)
    image = read_image(path)
    assert np.all(image.data == 1)
    assert problem in image.wcs_problem
    assert (image.wcs is None) == bool(problem)
    assert "\n" not in image.wcs_problem


def test_distortion_without_its_suffix_is_silent(path, capfd):
    header = celestial()
    header.update({"A_ORDER": 2, "A_2_0": 1e-5, "B_ORDER": 2, "B_0_2": 1e-5})
    fits.writeto(path, np.ones(SHAPE), header)
    assert read_image(path).wcs.sip is not None
    assert capfd.readouterr() == ("", "")


# Planes that go with an image


def test_plane_is_read_from_the_extension_that_its_name_says(path):
    write(path, plane(1, "SCI"), plane(2, "WHT"), plane(3, "WHT", ver=2))
    for name, expected in [("", 1), ("[WHT]", None), ("[WHT,1]", 2), ("[2]", 2), ("[ WHT,2]", 3)]:
        if expected:
            assert read_plane(f"{path}{name}", (4, 5))[0, 0] == expected


def test_file_may_have_brackets_in_its_name(tmp_path):
    path = tmp_path / "weight[1].fits"
    fits.writeto(path, np.ones((4, 5)))
    assert read_plane(path, (4, 5)).shape == (4, 5)
    odd = tmp_path / "weight.fits[1]"
    odd.write_bytes(path.read_bytes())
    assert read_plane(odd, (4, 5)).shape == (4, 5)


def test_plane_of_another_shape_is_refused(path):
    fits.writeto(path, np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"4 x 5 pixels .*but .* 5 x 4 pixels"):
        read_plane(path, (5, 4))


def test_plane_of_a_missing_file_or_extension_is_refused(path):
    with pytest.raises(FileNotFoundError):
        read_plane(f"{path}[WHT]", (4, 5))
    fits.writeto(path, np.ones((4, 5)))
    with pytest.raises(ValueError, match="no extension 'WHT'"):
        read_plane(f"{path}[WHT]", (4, 5))


@pytest.mark.parametrize("dtype", [">f4", np.float64, np.int16, np.uint8])
def test_weights_become_errors_and_bad_pixels(dtype):
    weight = np.array([[4, 1], [0, 100]], dtype)
    before = weight.copy()
    err, bad = errors_of_weights(weight)
    np.testing.assert_allclose(err, [[0.5, 1], [np.nan, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(bad, [[False, False], [True, False]])
    assert err.dtype.kind == "f"
    np.testing.assert_array_equal(weight, before)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_pixel_without_weight_is_bad(weight):
    err, bad = errors_of_weights(np.array([[weight, 1.0]]))
    np.testing.assert_array_equal(bad, [[True, False]])
    np.testing.assert_array_equal(err, [[np.nan, 1.0]])


# Facts of the header


@pytest.mark.parametrize(
    ("cards", "gain", "source"),
    [
        ({}, None, None),
        ({"GAIN": 2.0}, 2.0, "GAIN"),
        ({"GAIN": " 2.0 "}, 2.0, "GAIN"),
        ({"GAIN": 2}, 2.0, "GAIN"),
        ({"GAIN": 100, "EGAIN": 0.5}, 0.5, "EGAIN"),
        ({"EGAIN": 0.0, "GAIN": 2.0}, 2.0, "GAIN"),
        ({"EGAIN": -1.0, "GAIN": "high", "CCDGAIN": 3.0}, 3.0, "CCDGAIN"),
        ({"GAIN": True}, None, None),
        ({"GAIN": "nan"}, None, None),
        ({"GAIN": "inf"}, None, None),
        ({"GAIN": 139, "XPIXSZ": 3.76}, None, None),
        ({"GAIN": 139, "EGAIN": 1.1, "XPIXSZ": 3.76}, 1.1, "EGAIN"),
        ({"GAINA": 4.0, "GAINB": 4.5}, 4.25, "GAINA and GAINB"),
        ({"GAINA": 4.0}, None, None),
        ({"BUNIT": "electron", "GAIN": 2.0}, 1.0, "BUNIT = electron"),
        ({"BUNIT": "ELECTRONS", "EGAIN": 2.0}, 1.0, "BUNIT = ELECTRONS"),
        ({"BUNIT": "adu", "GAIN": 2.0}, 2.0, "GAIN"),
        ({"BUNIT": "ADU/pixel", "GAIN": 2.0}, 2.0, "GAIN"),
        ({"BUNIT": "e-/s", "EXPTIME": 30.0}, 30.0, "BUNIT = e-/s and EXPTIME"),
        ({"BUNIT": "ELECTRONS/S", "EXPOSURE": 30.0}, 30.0, "BUNIT = ELECTRONS/S and EXPOSURE"),
        ({"BUNIT": "electron s-1", "EXPTIME": "30"}, 30.0, "BUNIT = electron s-1 and EXPTIME"),
        ({"BUNIT": "electrons/s"}, None, None),
        ({"BUNIT": "DN/s", "GAIN": 2.0, "EXPTIME": 30.0}, 60.0, "GAIN and EXPTIME"),
        ({"BUNIT": "counts / sec", "GAIN": 2.0, "EXPTIME": 30.0}, 60.0, "GAIN and EXPTIME"),
        ({"BUNIT": "adu s**-1", "GAIN": 2.0, "EXPTIME": 0.0}, None, None),
        ({"BUNIT": "MJy/sr", "GAIN": 2.0}, None, None),
        ({"BUNIT": "nanomaggy", "GAIN": 2.0}, None, None),
    ],
)
def test_gain_is_in_electrons_per_unit_of_the_pixels(cards, gain, source):
    fact = header_facts(header_of(**cards)).gain
    assert (fact and fact.value, fact and fact.source) == (gain, source)


@pytest.mark.parametrize(
    ("name", "value"),
    [("HIERARCH ESO DET OUT1 CONAD", 2.5), ("HIERARCH CELL.GAIN", 1.2), ("ATODGAIN", 7.0)],
)
def test_gain_is_found_under_the_names_of_observatories(name, value):
    header = fits.Header([fits.Card(name, value)])
    assert header_facts(header).gain == (value, name.removeprefix("HIERARCH "))


@pytest.mark.parametrize(
    ("unit", "is_rate"),
    [("", False), ("adu", False), ("e-/s", True), ("DN/s", True), ("cts per second", True),
     ("count s-1", True), ("Jy/s", False), ("adus", False), ("electrons", False)],
)  # fmt: skip
def test_facts_say_whether_pixels_are_a_rate(unit, is_rate):
    facts = header_facts(header_of(BUNIT=unit))
    assert (facts.unit, facts.is_rate) == (unit, is_rate)


@pytest.mark.parametrize(
    ("cards", "saturation"),
    [
        ({"SATURATE": 5e4}, (5e4, "SATURATE")),
        ({"SATURVAL": "6e4"}, (6e4, "SATURVAL")),
        ({"SATURATE": 0, "MAXLIN": 4e4}, (4e4, "MAXLIN")),
        ({"SATURATA": 5e4, "SATURATB": 4e4}, (4e4, "SATURATA and SATURATB")),
        ({"DATAMAX": 5e4}, None),
        ({"SATURATE": 5e4, "BUNIT": "electrons"}, (5e4, "SATURATE")),
        ({"SATURATE": 5e4, "BUNIT": "adu/s", "EXPTIME": 2.0}, None),
        ({"SATURATE": 5e4, "BUNIT": "MJy/sr"}, None),
        ({"SATURATE": -1}, None),
    ],
)
def test_saturation_is_a_level_of_the_pixels(cards, saturation):
    assert header_facts(header_of(**cards)).saturation == saturation


@pytest.mark.parametrize(
    ("card", "exposure"),
    [
        (("EXPTIME", 30), (30.0, "EXPTIME")),
        (("EXPTIME", "30.5"), (30.5, "EXPTIME")),
        (("EXPOSURE", 30.0, "[s] open shutter"), (30.0, "EXPOSURE")),
        (("EXPOSURE", 0.5, "[d] time on source"), (43200.0, "EXPOSURE")),
        (("EXPTIME", 20.0, "[ms]"), (0.02, "EXPTIME")),
        (("ITIME", 8.0), (8.0, "ITIME")),
        (("EXPTIME", 0.0), None),
        (("EXPTIME", "long"), None),
    ],
)
def test_exposure_is_in_seconds(card, exposure):
    fact = header_facts(fits.Header([fits.Card(*card)])).exposure
    assert fact == (exposure and pytest.approx(exposure[0]), exposure and exposure[1]) or (
        fact is None and exposure is None
    )


def test_key_facts_are_plain_values_under_short_keys():
    header = header_of(
        OBJECT=" M13 ", TELESCOP="", FILTER="r", MJD_OBS=58000.5, EXPTIME=30, AIRMASS=1.5, OTHER=1
    )
    facts = key_facts(header)
    assert facts == {"OBJECT": "M13", "FILTER": "r", "MJD-OBS": 58000.5, "EXPTIME": 30,
                     "AIRMASS": 1.5}  # fmt: skip
    assert all(type(value) in (str, int, float) for value in facts.values())
    assert all(len(key) <= 8 for key in facts)
    assert key_facts(fits.Header()) == {}


def test_keywords_without_value_or_with_one_beyond_float_are_no_facts():
    header = raw_header("GAIN    =", "EXPTIME = 1E400", "OBJECT  =", "SATURATE=")
    facts = header_facts(header)
    assert (facts.gain, facts.exposure, facts.saturation) == (None, None, None)
    assert key_facts(header) == {}


# Real images


@pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not here")
def test_real_images_say_what_is_known_of_them():
    decam = read_image(DATA / "decam/image_r_N6.fits")
    facts = header_facts(decam.header)
    assert (facts.gain.source, facts.saturation.source) == ("GAINA and GAINB", "SATURATE")
    assert facts.exposure == (45.0, "EXPTIME")
    assert decam.wcs.wcs.radesys == "ICRS"  # FK5 of the primary header is for itself
    assert key_facts(decam.header)["INSTRUME"] == "DECam"
    err, bad = errors_of_weights(read_plane(DATA / "decam/weight_r_N6.fits[N6]", decam.data.shape))
    assert np.all(np.isfinite(err) == ~bad)

    eso = read_image(DATA / "eso085/aligned_eso085-030-004.fit")
    assert (eso.data.dtype, eso.wcs) == (np.uint16, None)
    assert header_facts(eso.header).exposure == (60.0, "EXPTIME")

    assert read_image(DATA / "galactic_center/gc_2mass_k.fits").wcs is not None
