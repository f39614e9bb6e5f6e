"""Random bits as a function of where they stand: integer hashes, computed on the device by plain tensor operations.

A generator gives bits in the order in which they are asked for, so that a row's bits depend on the rows beside it, on
the padding and on the process. Here each element's bits are a hash of its row's key and its indices. The mixing
function is that of a 32-bit hash with small bias (multiplications by odd numbers and shifts: C. Wellons' "lowbias32",
with the last shift 15); two keys of 32 bits enter it, so that no two streams of one run coincide.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from peftcli.layers.cpu.equal_slices import slices

Key = tuple[int, int]
"""Two signed numbers of 32 bits."""

BLOCK = 2**17
"""Hashes that a CPU computes at once: they stay in its cache."""

STATES = 65536
"""Values of the 16 bits that each element gets."""

_FIRST, _SECOND = 0x21F0AAAD, 0xD35A2D97 - 2**32
"""Odd factors, as signed numbers of 32 bits."""
_GOLDEN = 0x9E3779B9
_SHIFT, _LOW = 15, 0x1FFFF
"""A shift right by 15, and the bits that it leaves; a signed tensor is filled from the left with its sign."""


def key_of(*numbers: int) -> Key:
    """Return the key of some numbers: a hash of them."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:], "little", signed=True)


def keys_tensor(keys: list[Key], device: torch.device) -> Tensor:
    """Return keys as int32 (2, keys) on a device."""
    return torch.tensor(keys, dtype=torch.int32).reshape(-1, 2).T.contiguous().to(device, non_blocking=True)


def with_index(keys: Tensor, index: int) -> Tensor:
    """Return keys that depend on `keys` and a number."""
    return _mix_(keys ^ _signed(index * _GOLDEN + 1))


def with_indices(keys: Tensor, indices: Tensor) -> Tensor:
    """Return keys that depend on `keys` and int32 `indices`, broadcast against each other."""
    return _mix_(keys ^ (indices * _signed(_GOLDEN)))


def hashed_bits(keys: Tensor, width: int, first: int = 0) -> Tensor:
    """Return uniformly distributed int16 numbers.

    Args:
        keys: (2, ...) int32.
        width: numbers for each key.
        first: index of the first one: those of a larger width from there on.

    Returns:
        (..., width); the last dimension may have a longer stride.
    """
    start, end = first // 2, (first + width + 1) // 2  # one hash gives two numbers
    places = _mix_(torch.arange(start, end, dtype=torch.int32, device=keys.device) * _signed(_GOLDEN) + 1)
    flat = keys.reshape(2, -1)
    pairs = torch.empty(flat.shape[1], end - start, dtype=torch.int32, device=keys.device)
    block = max(1, BLOCK // (end - start)) if keys.device.type == "cpu" else max(1, flat.shape[1])
    scratch = torch.empty_like(pairs[:block])
    for chosen in slices(flat.shape[1], block):
        own, bits = flat[:, chosen], pairs[chosen]
        rest = scratch[: len(bits)]
        torch.add(own[0].unsqueeze(1), places, out=bits).mul_(_FIRST)
        torch.bitwise_right_shift(bits, _SHIFT, out=rest)
        bits.bitwise_xor_(rest.bitwise_and_(_LOW)).bitwise_xor_(own[1].unsqueeze(1)).mul_(_SECOND)
        torch.bitwise_right_shift(bits, _SHIFT, out=rest)
        bits.bitwise_xor_(rest.bitwise_and_(_LOW))
    return pairs.view(*keys.shape[1:], end - start).view(torch.int16).narrow(-1, first % 2, width)


def _mix_(x: Tensor) -> Tensor:
    """Mix int32 numbers in place: a change of one bit changes each bit with probability one half."""
    x.mul_(_FIRST).bitwise_xor_((x >> _SHIFT).bitwise_and_(_LOW))
    return x.mul_(_SECOND).bitwise_xor_((x >> _SHIFT).bitwise_and_(_LOW))


def _signed(number: int) -> int:
    """Return a number's lower 32 bits as a signed number."""
    low = number % 2**32
    return low - 2**32 if low >= 2**31 else low
