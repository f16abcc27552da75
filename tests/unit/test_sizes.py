"""Sizes mean what people write, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedregion._sizes import MAX_SIZE, format_size, parse_size

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 GiB", 8 * GIB),
        ("8G", 8 * GIB),
        ("8g", 8 * GIB),
        ("8gib", 8 * GIB),
        (" 8 GiB ", 8 * GIB),
        ("512 MiB", 512 << 20),
        ("1.5GiB", 3 * GIB // 2),
        ("0.5", 1),
        ("4096", 4096),
        ("4096B", 4096),
        ("1k", 1024),
        ("128 TiB", MAX_SIZE),
        (1, 1),
        (np.int64(7), 7),
        (4096.0, 4096),
    ],
)
def test_sizes_are_powers_of_1024(text: object, expected: int) -> None:
    size = parse_size(text)  # type: ignore[arg-type]
    assert size == expected
    assert type(size) is int


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (0, "not above 0"),
        ("0", "not above 0"),
        ("0 GiB", "not above 0"),
        (-1, "not above 0"),
        ("-8 GiB", "not above 0"),
        (True, "truth value"),
        (float("nan"), "not a number"),
        (float("inf"), "not a number"),
        ("nan", "not understood"),
        ("", "not understood"),
        ("GiB", "not understood"),
        ("8 iB", "not understood"),
        ("8 XiB", "not understood"),
        ("1_000", "not understood"),
        ("1e9", "not understood"),
        ("٨ GiB", "not understood"),
        ("8 GiB; rm", "not understood"),
        pytest.param("9" * 100_000, "not understood", id="long"),
        ("8 GB", "write GiB"),
        (MAX_SIZE + 1, "address space"),
        ("129 TiB", "address space"),
        (1e300, "address space"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_the_reason(text: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_size(text)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


def test_a_number_too_long_to_print_is_refused_like_any_other() -> None:
    with pytest.raises(ValueError, match="address space"):
        parse_size(1 << 100_000)


@pytest.mark.parametrize("value", [None, b"8G", [8], object(), 1j])
def test_what_is_neither_number_nor_text_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="size is"):
        parse_size(value)  # type: ignore[arg-type]


@given(st.integers(1, MAX_SIZE))
def test_every_size_survives_as_number_and_as_text(size: int) -> None:
    assert parse_size(size) == parse_size(str(size)) == size


@given(st.integers(1, (1 << 17) - 1), st.integers(0, 999))
def test_decimals_are_exact_and_count_whole(whole: int, thousandths: int) -> None:
    """No float is on the way: a byte is never lost, a part of a byte counts as one."""
    bytes_times_1000 = (whole * 1000 + thousandths) * GIB
    size = parse_size(f"{whole}.{thousandths:03d} GiB")
    assert (size - 1) * 1000 < bytes_times_1000 <= size * 1000


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (601 << 20, "601 MiB"),
        (300 * GIB, "300 GiB"),
        (1000 * 1024, "0.98 MiB"),
        (-2048, "-2 KiB"),
        (1500 * (601 << 20), "880 GiB"),
    ],
)
def test_sizes_are_shown_with_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, MAX_SIZE))
def test_a_shown_size_is_within_one_percent(size: int) -> None:
    number, unit = format_size(size).split()
    shown = float(number) * {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert abs(shown - size) <= size * 0.01
