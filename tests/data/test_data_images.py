"""Single images: odd ones come out right, broken ones are named."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hashlens import ImageError, SourceError
from hashlens.data.folders import list_folder
from hashlens.data.image import MAX_PIXELS
from hashlens.data.opening import load_image
from hashlens.files import path_uri, uri_path
from image_builders import encoded, picture

REASONS = {
    "zero_bytes.jpg": "empty (0 bytes)",
    "text.jpg": "not an image in a known format",
    "truncated.jpg": "truncated",
    "truncated.png": "truncated",
    "header_only.png": "",
    "noise.png": "",
    "bomb.png": f"limit of {MAX_PIXELS:,} pixels",
    "script.ps": "not an image in a known format",
    "broken_link.png": "no such file",
}


def test_broken_images_are_named_with_a_reason(bad_images: dict[str, Path]) -> None:
    assert set(bad_images) == set(REASONS)
    for name, path in bad_images.items():
        with pytest.raises(ImageError) as caught:
            load_image(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert REASONS[name] in message
        assert "\n" not in message


def test_a_bomb_is_refused_before_it_is_decoded(bad_images: dict[str, Path]) -> None:
    code = (
        "import re, sys; from hashlens.data.opening import load_image\n"
        "try: load_image(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__)\n"
        # ru_maxrss would begin at the peak of the process that started this one
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", code, str(bad_images["bomb.png"])]
    kind, peak_kib = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert kind == "ImageError"
    assert int(peak_kib) < 400_000  # the pixels alone would be 900 MB


def test_a_picture_over_the_limit_is_refused_also_in_memory() -> None:
    with pytest.raises(ImageError, match="over the limit"):
        load_image(Image.new("1", (20_000, 9_000)))


def colours(image: Image.Image) -> tuple[object, object]:
    """Pixels in the middle of the left and of the right half."""
    width, height = image.size
    return (
        image.getpixel((width // 4, height // 2)),
        image.getpixel((3 * width // 4, height // 2)),
    )


def test_an_animation_gives_its_first_frame(odd_images: dict[str, Path]) -> None:
    image = load_image(odd_images["animated.gif"])
    assert (image.mode, colours(image)) == ("RGB", ((255, 0, 0), (255, 0, 0)))


def test_cmyk_becomes_rgb(odd_images: dict[str, Path]) -> None:
    image = load_image(odd_images["cmyk.jpg"])
    red, green, blue = image.getpixel((20, 10))  # type: ignore[misc]
    assert image.mode == "RGB"
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("name", ["sixteen_bit.png", "sixteen_bit.tif"])
def test_sixteen_bits_are_scaled_to_eight(odd_images: dict[str, Path], name: str) -> None:
    image = load_image(odd_images[name])
    expected = [round(i * 65535 // 799 / 257) for i in range(800)]
    assert image.mode == "L"
    assert np.asarray(image).ravel().tolist() == expected


def test_floats_from_zero_to_one_fill_the_range(odd_images: dict[str, Path]) -> None:
    pixels = np.asarray(load_image(odd_images["float.tif"]))
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize("name", ["palette_alpha.png", "rgba.png"])
def test_transparency_is_laid_over_white(odd_images: dict[str, Path], name: str) -> None:
    image = load_image(odd_images[name])
    assert (image.mode, colours(image)) == ("RGB", ((255, 255, 255), (255, 0, 0)))


def test_grey_with_transparency_stays_grey(odd_images: dict[str, Path]) -> None:
    image = load_image(odd_images["grey_alpha.png"])
    assert (image.mode, colours(image)) == ("L", (255, 76))  # 0.299 * 255


def test_half_transparent_is_half_white() -> None:
    image = load_image(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
    assert image.getpixel((0, 0)) == (127, 127, 127)


def test_exif_rotation_is_applied(odd_images: dict[str, Path]) -> None:
    image = load_image(odd_images["rotated.jpg"])
    assert image.size == (20, 40)
    top, bottom = image.getpixel((10, 10)), image.getpixel((10, 30))
    assert top[2] > 200 > 60 > top[0]  # type: ignore[index]
    assert bottom[0] > 200 > 60 > bottom[2]  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_spoil_the_picture() -> None:
    data = encoded(picture("cross", 1), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert load_image(data).size == (32, 32)


def test_one_bit_and_grey_are_grey(odd_images: dict[str, Path]) -> None:
    assert np.asarray(load_image(odd_images["one_bit.png"])).min() == 255
    assert load_image(odd_images["grey.png"]).mode == "L"


@pytest.mark.parametrize("mode", ["La", "RGBa", "YCbCr", "HSV", "LAB", "P", "I;16B", "PA", "I"])
def test_every_mode_of_pillow_becomes_grey_or_colour(mode: str) -> None:
    image = load_image(Image.new(mode, (3, 2)))
    assert image.mode in ("L", "RGB")
    assert image.size == (3, 2)


def test_a_hash_in_a_file_name_is_part_of_the_name(odd_images: dict[str, Path]) -> None:
    path = odd_images["name # with é.png"]
    assert load_image(str(path)).size == (40, 20)
    assert load_image(path_uri(str(path))).size == (40, 20)


def test_a_name_that_is_not_utf8_has_a_uri_that_can_be_stored(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 #1.png"
    try:
        with open(raw, "wb") as file:
            file.write(encoded(picture("cross", 0)))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    [path] = list_folder(tmp_path).paths
    uri = path_uri(os.fspath(path))
    assert uri.encode().startswith(b"file:///")
    assert uri_path(uri) == path
    assert load_image(uri).size == (32, 32)
    os.truncate(raw, 10)
    with pytest.raises(ImageError, match="%E9"):
        load_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "x #3.png", "y.parquet#3.png", "é.png"])
def test_plain_paths_are_their_own_uris(name: str) -> None:
    assert path_uri(f"/photos/{name}") == f"/photos/{name}"


def test_bytes_and_arrays_are_images() -> None:
    drawn = picture("stripe", 3)
    pixels = np.asarray(drawn)
    assert np.array_equal(np.asarray(load_image(encoded(drawn))), pixels)
    assert np.array_equal(np.asarray(load_image(pixels)), pixels)
    assert load_image(pixels[:, :, 0]).mode == "L"
    assert load_image(pixels[:, ::-1]).getpixel((0, 0)) == drawn.getpixel((31, 0))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4), np.float32), "uint8, got float32"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), "empty array"),
        (b"", "0 bytes"),
    ],
)
def test_arrays_of_other_shapes_are_refused(array: object, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_image(array)  # type: ignore[arg-type]


def test_the_callers_picture_is_not_changed() -> None:
    opened = Image.open(io.BytesIO(encoded(picture("circle", 0, 256), "JPEG")))
    load_image(opened, size_hint=16)
    assert opened.size == (256, 256)


def test_a_large_jpeg_is_decoded_smaller_but_not_below_twice_the_hint() -> None:
    data = encoded(picture("circle", 0, 256), "JPEG")
    assert load_image(data).size == (256, 256)
    assert load_image(data, size_hint=32).size == (64, 64)
    assert load_image(data, size_hint=100).size == (256, 256)


@pytest.mark.parametrize("kind", ["WEBP", "JPEG2000", "TIFF", "BMP", "PPM", "GIF", "MPO"])
def test_other_formats_are_read_whole_and_refused_cut(kind: str) -> None:
    data = encoded(picture("circle", 0, 128), kind)
    assert load_image(data, size_hint=100).size == (128, 128)
    with pytest.raises(ImageError, match=r"damaged|not an image"):
        load_image(data[: len(data) // 2])


def test_folders_pipes_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a folder, expected an image file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match=r"file://\[x: no name of a file"):
        load_image("file://[x")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")


@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 2000))
def test_damaged_files_raise_image_errors_only(noise: bytes, at: int, cut: int) -> None:
    data = bytearray(encoded(picture("cross", 5, 16), "JPEG" if at % 2 else "PNG"))
    at %= len(data)
    data[at : at + len(noise)] = noise
    name = ""
    try:
        image = load_image(bytes(data[: len(data) - cut % len(data)]))
    except ImageError as error:  # any other error fails the test
        name = str(error)[:7]
    assert name == "bytes: " or image.mode in ("L", "RGB")


def test_listing_is_recursive_sorted_and_follows_no_loops(tmp_path: Path) -> None:
    names = ["b/2.JPG", "b/10.jpg", "a/deep/er/x.webp", "top.png", "notes.txt", ".hidden.png"]
    for name in [*names, ".cache/y.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    found = [str(path.relative_to(tmp_path)) for path in list_folder(tmp_path).paths]
    assert found == [
        "a/deep/er/x.webp",
        "b/10.jpg",
        "b/2.JPG",
        "circle.png",
        "linked/10.jpg",
        "linked/2.JPG",
        "top.png",
    ]
    with pytest.raises(ImageError):
        load_image(tmp_path / "circle.png")


def test_listing_what_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceError, match="no such folder"):
        list_folder(tmp_path / "none")
    with pytest.raises(SourceError, match="expected a folder, got a file"):
        list_folder(tmp_path / "file")


def test_folders_and_files_without_permission_are_named() -> None:
    code = (
        "import os, sys\n"
        "from PIL import Image\n"
        "from hashlens.data.opening import load_image\n"
        "from hashlens.data.opening import open_source\n"
        "from hashlens import HashlensError\n"
        "Image.init()  # all that is imported is imported before rights are given up\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "for step in (lambda: open_source(sys.argv[1]),\n"
        "             lambda: open_source(sys.argv[1], strict=True),\n"
        "             lambda: load_image(sys.argv[2]),\n"
        "             lambda: open_source(sys.argv[1] + '/closed/inner')):\n"
        "    try: print(getattr(step(), 'notes', 'read'))\n"
        "    except HashlensError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "closed").mkdir()
        picture("cross", 0).save(root / "closed.png")
        (root / "closed.png").chmod(0)
        (root / "closed").chmod(0)
        command = [sys.executable, "-c", code, name, str(root / "closed.png")]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        (root / "closed").chmod(0o755)
    notes, folder, file, inner = answer.stdout.splitlines()
    assert f"left out 1 folders that may not be listed: {name}/closed" in notes
    assert f"{name}/closed: no permission to list this folder" in folder
    assert file == f"{name}/closed.png: no permission to read it"
    assert "no permission" in inner
