"""The EMA teacher against a plain loop."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

from mmssl.parts.schedules import constant, cosine
from mmssl.parts.teachers import EMA
from tests.small import batch, module

TEACHER = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}


class Student(nn.Module):
    """Has parameters, a floating buffer and integer buffers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("table", torch.randn(3))


def moved(student, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
        student.table.add_(torch.randn(3))
        student.seen.add_(3)
        student.body[1].num_batches_tracked.add_(1)
        student.body[1].running_mean.add_(torch.randn(3))


def test_twins_equal_a_plain_loop():
    torch.manual_seed(0)
    momentum = partial(cosine, first=0.9, last=1.0)
    teacher, student = EMA(momentum=momentum), Student()
    twin = teacher.twin("main", student)
    plain = {name: value.clone() for name, value in student.state_dict().items()}
    for step in range(5):
        moved(student, step)
        teacher.follow(step / 5)
        keep = momentum(step / 5)
        for name, value in student.state_dict().items():
            floating = value.is_floating_point()
            plain[name] = keep * plain[name] + (1 - keep) * value if floating else value.clone()
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-6, msg=name)
    assert twin.seen.tolist() == [15, 15] and int(twin.body[1].num_batches_tracked) == 5


def test_a_twin_is_a_frozen_copy():
    teacher, student = EMA(momentum=partial(constant, value=0.5)), Student()
    twin = teacher.twin("main", student)
    before = copy.deepcopy(twin.state_dict())
    assert all(not p.requires_grad for p in twin.parameters()) and all(p.requires_grad for p in student.parameters())
    moved(student, 0)
    for name, value in twin.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(("value", "equals"), [(0.0, "student"), (1.0, "before")])
@pytest.mark.parametrize("said", ["number", "schedule"])
def test_ends_of_the_momentum(value, equals, said):
    teacher, student = EMA(momentum=value if said == "number" else partial(constant, value=value)), Student()
    twin = teacher.twin("main", student)
    before = copy.deepcopy(dict(twin.named_parameters()))
    moved(student, 0)
    teacher.follow(0.0)
    expected = dict(student.named_parameters()) if equals == "student" else before
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-6, check_stride=False)


def test_of_finds_the_twin_of_a_module():
    teacher, first, second = EMA(momentum=constant), Student(), Student()
    twins = teacher.twin("a", first), teacher.twin("b", second)
    assert teacher.of(first) is twins[0] and teacher.of(second) is twins[1]
    with pytest.raises(KeyError, match="no twin of this Linear"):
        teacher.of(nn.Linear(1, 1))


def test_several_twins_follow_together():
    teacher, students = EMA(momentum=partial(constant, value=0.0)), [Student(), Student()]
    twins = [teacher.twin(str(i), student) for i, student in enumerate(students)]
    moved(students[0], 0), moved(students[1], 1)
    teacher.follow(0.0)
    for twin, student in zip(twins, students, strict=True):
        torch.testing.assert_close(twin.body[0].weight, student.body[0].weight)


def test_when_a_teacher_may_follow():
    with pytest.raises(ValueError, match=r"teacher\.when has to be 'after' or 'before' \(got 'during'\)"):
        EMA(momentum=constant, when="during")


def test_a_checkpoint_holds_every_tensor_once():
    part = module(teacher=TEACHER)
    state, network = part.state_dict(), part.networks["main"].state_dict()
    student = {name.removeprefix("networks.main.") for name in state if name.startswith("networks.main.")}
    twin = {name.removeprefix("teacher.twins.main.") for name in state if name.startswith("teacher.twins.main.")}
    assert student == twin == set(network)
    rest = {name for name in state if not name.startswith(("networks.main.", "teacher.twins.main.", "objective."))}
    assert not rest
    pointers = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(pointers) == len(set(pointers))


def test_the_optimizer_does_not_see_twins():
    part = module(teacher=TEACHER)
    twins = {id(p) for p in part.teacher.parameters()}
    trained = {id(p) for group in part.configure_optimizers().param_groups for p in group["params"]}
    assert twins and not twins & trained
    assert trained == {id(p) for p in part.parameters() if p.requires_grad}
    assert part.begin(batch())["x"].taught.x.shape == (4, 16, 32)


def test_twins_have_neither_dropout_nor_drop_path():
    body = nn.ModuleList([nn.Dropout(0.5), DropPath(0.5), nn.MultiheadAttention(4, 2, dropout=0.5)])
    teacher = EMA(momentum=partial(constant, value=0.5))
    twin = teacher.twin("main", body)
    assert (twin[0].p, twin[1].drop_prob, twin[2].dropout) == (0.0, 0.0, 0.0)
    assert (body[0].p, body[1].drop_prob, body[2].dropout) == (0.5, 0.5, 0.5)


def test_some_names_are_copied_and_not_averaged():
    teacher, student = EMA(momentum=partial(constant, value=0.9), copied=["main.body.0.*"]), Student()
    twin = teacher.twin("main", student)
    before = twin.body[1].weight.clone()
    moved(student, 1)
    teacher.follow(0.0)
    assert torch.equal(twin.body[0].weight, student.body[0].weight)
    torch.testing.assert_close(twin.body[1].weight, 0.9 * before + 0.1 * student.body[1].weight)
    assert float(teacher.distance()) > 0


@pytest.mark.parametrize("value", [1.5, -0.1])
def test_a_momentum_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=r"teacher\.momentum is the share .* has to lie in \[0, 1\]"):
        EMA(momentum=partial(constant, value=value))
