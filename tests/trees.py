"""Comparing nested dicts, lists and tensors."""

from torch import Tensor


def same(left: object, right: object) -> bool:
    """Whether two trees are equal in types, order, shapes, dtypes, devices and bits; NaN equals NaN."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        alike = all(getattr(left, name) == getattr(right, name) for name in ("shape", "dtype", "device", "layout"))
        return alike and (left.is_meta or _bits(left) == _bits(right))
    if isinstance(left, dict) and isinstance(right, dict):
        return [*left] == [*right] and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and type(left) is type(right):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and bool(left == right or (left != left and right != right))


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().to_dense().cpu().contiguous().numpy().tobytes()
