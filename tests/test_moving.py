"""Small tensors that go together end where each would alone."""

import pytest
import torch
from torch.testing import assert_close

from learned_optim import apply_updates
from learned_optim.moving import move_
from learned_optim.reduction import all_finite, all_zero
from learned_optim.together import SMALL, joined_, small_together

SHAPES = {
    "weight": (3, 4),
    "bias": (4,),
    "scale": (),
    "none": (0, 2),
    "large": (SMALL + 1,),
    "half": (5,),
    "kernel": (2, 1, 3),
}


def drawn(seed, *, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return tensors | {"half": tensors["half"].bfloat16(), "kernel": tensors["kernel"].transpose(0, 2)}


def options():
    slow, fast = 0.1, torch.tensor(2.0)
    lr = dict.fromkeys(SHAPES, slow) | dict.fromkeys(("bias", "scale"), fast)
    return {"lr": lr, "weight_decay": dict.fromkeys(SHAPES, 0.0) | {"weight": 0.3}}


@pytest.mark.parametrize("finite", [True, False])
def test_together_as_alone_bit_for_bit(finite):
    params, updates = drawn(0), drawn(1)
    expected = apply_updates(params, updates, **options()) if finite else drawn(0)
    expected = {name: value.clone() for name, value in expected.items()}
    move_(params, updates, **options(), finite=torch.tensor(finite))
    assert_close(params, expected, rtol=0, atol=0)


def test_only_small_tensors_of_a_kind_go_together():
    assert sorted(map(sorted, small_together(drawn(0)))) == [
        ["bias", "kernel", "none", "scale", "weight"],
        ["half"],
        ["large"],
    ]


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "none"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_coordinate_in_any_tensor_is_seen(name, value):
    tensors = drawn(0, scale=0.0)
    assert bool(all_zero(tensors))
    assert bool(all_finite(tensors))
    tensors[name][(-1,) * tensors[name].dim()] = value
    assert not bool(all_zero(tensors))
    assert not bool(all_finite(tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_tensors_are_parts_of_the_result_and_stay_the_tensors_that_they_are(dtype):
    rest = torch.Size((2, 3))
    tensors = [torch.randn(*shape, *rest).to(dtype) for shape in ((), (4,), (2, 1), (5,))]
    before = [tensor.clone() for tensor in tensors]
    whole = joined_(tensors, rest)
    assert_close(tensors, before, rtol=0, atol=0)
    assert_close(whole, torch.cat([tensor.reshape(-1, *rest) for tensor in before]), rtol=0, atol=0)
    whole[1] = 7
    assert bool((tensors[1][0] == 7).all())
    again = joined_(tensors, rest)
    assert (again.data_ptr(), again.shape) == (whole.data_ptr(), whole.shape)  # nothing was moved
    some = joined_(tensors[1:3], rest)
    assert some.data_ptr() == tensors[1].data_ptr() == whole[1:].data_ptr()  # nor here
    between = joined_([tensors[0], tensors[2]], rest)
    between.zero_()
    assert not bool(tensors[0].any() or tensors[2].any())
    assert bool((whole[0] != 0).any())  # what they were parts of before is no longer theirs
    assert_close(tensors[3], before[3], rtol=0, atol=0)


def test_joining_looks_no_further_than_its_own_memory():
    memory = torch.arange(6.0)
    first, second = memory[:3].clone(), memory[3:]
    assert_close(joined_([first, second], torch.Size()), memory)
    assert_close(joined_([second, first], torch.Size()), torch.tensor([3.0, 4, 5, 0, 1, 2]))
