"""The reference of half precision itself: its random bits beside the published ones."""

from oracle import halves_reference as halves


def test_random_bits_are_philox():
    known = [
        ((0, 0, 0), (0xFF1DAE59, 0x6CD10DF2)),
        ((0xFFFFFFFF,) * 3, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E), (0xDD7CE038, 0xF62A4C12)),
    ]
    for (left, right, key), expected in known:
        assert tuple(map(int, halves.philox(left, right, key))) == expected
