import math

import pytest
import torch
from naive import cross_entropy, softmax, turned, unit

from diptych.errors import DiptychError
from diptych.losses.matrix import matrix_distillation, row_distillation, trusted

B = 5
STUDENT = 20 * unit(B, 6, seed=1) @ unit(B, 6, seed=2).T
TEACHERS = [30 * unit(B, 6, seed=3) @ unit(B, 6, seed=4).T, 10 * unit(B, 6, seed=5) @ unit(B, 6, seed=6).T]
ROWS, COLUMNS = torch.tensor([1.0, 0, 1, 1, 0]).double(), torch.tensor([0.0, 1, 0, 2, 1]).double()


def one_way(student, teachers, divergence, weights):
    total = 0.0
    for i, logits in enumerate(student):
        shares = [softmax(t[i]) for t in teachers]
        target = [sum(values) / len(values) for values in zip(*shares, strict=True)]
        found = cross_entropy(target, logits)
        if divergence:
            found += sum(t * math.log(t) for t in target)
        total += weights[i] * found
    return total / len(student)


@pytest.mark.parametrize("divergence", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_it_is_the_loop(divergence, masked, count):
    rows, columns = (ROWS, COLUMNS) if masked else (torch.ones(B), torch.ones(B))
    teachers = [t.tolist() for t in TEACHERS[:count]]
    expected = one_way(STUDENT.tolist(), teachers, divergence, rows.tolist())
    expected += one_way(turned(STUDENT.tolist()), [turned(t) for t in teachers], divergence, columns.tolist())
    weights = {"rows": rows, "columns": columns} if masked else {}
    found = matrix_distillation(STUDENT, TEACHERS[:count], divergence=divergence, **weights)
    assert found.item() == pytest.approx(expected / 2, abs=1e-12)
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: matrix_distillation(s, TEACHERS[:count], divergence=divergence, **weights), [student]
    )


def test_a_student_like_its_teacher_is_at_the_least():
    student = STUDENT.clone().requires_grad_()
    least = matrix_distillation(student, [STUDENT])
    least.backward()
    shares = STUDENT.softmax(1), STUDENT.T.softmax(1)
    entropy = sum(-(p * p.log()).sum(1).mean().item() for p in shares) / 2
    assert least.item() == pytest.approx(entropy)
    assert student.grad is not None and student.grad.abs().max() < 1e-12
    assert matrix_distillation(STUDENT, [STUDENT], divergence=True).item() == pytest.approx(0, abs=1e-12)


def test_even_scores_are_the_logarithm_of_the_count():
    even = torch.zeros(B, B, dtype=torch.float64)
    assert matrix_distillation(even, TEACHERS).item() == pytest.approx(math.log(B))
    certain = torch.where(torch.eye(B) > 0, 0.0, -torch.inf).double()  # 0 log 0 is 0
    assert matrix_distillation(even, [certain], divergence=True).item() == pytest.approx(math.log(B))


def test_no_gradient_reaches_a_teacher():
    teacher = TEACHERS[0].clone().requires_grad_()
    matrix_distillation(STUDENT.clone().requires_grad_(), [teacher]).backward()
    assert teacher.grad is None
    with pytest.raises(DiptychError, match="teacher"):
        row_distillation(STUDENT, [])


def test_only_rows_that_find_their_own_are_trusted():
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.2, 0.0], [0.0, 0.6, 0.5]])
    assert trusted(scores).tolist() == [1, 0, 0]
    assert trusted(scores.T).tolist() == [1, 0, 1]
    same = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1]]).bool()  # pairs 1 and 2 show one picture
    assert trusted(scores, same).tolist() == [1, 0, 1]


def test_masked_rows_are_rows_replaced_by_the_students_own():
    """Mod-X's formulation: a row the teacher has wrong becomes the student's, with no loss and no gradient."""
    mask = trusted(TEACHERS[0])
    assert 0 < mask.sum() < B
    replaced = torch.where(mask[:, None] > 0, TEACHERS[0], STUDENT)
    gradients = []
    for teacher, weight in [(TEACHERS[0], mask), (replaced, torch.ones(B))]:
        student = STUDENT.clone().requires_grad_()
        loss = (weight * row_distillation(student, [teacher], divergence=True)).sum()
        loss.backward()
        gradients.append((loss.item(), student.grad))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-12)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], atol=1e-9, rtol=0)
