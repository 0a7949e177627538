"""A sparse matrix times rows, against the dense product."""

import pytest
import torch
from kit import check_derivatives, permuted

from hamfast import ops

pytestmark = pytest.mark.usefixtures("double")


def random_matrix(dim_out=37, dim_in=19):
    dense = torch.randn(dim_out, dim_in) * (torch.rand(dim_out, dim_in) < 0.3)
    dense[3], dense[:, 5] = 0, 0  # an empty row, a column that nothing reads
    return dense


@pytest.mark.cuda_sources
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_derivatives(rows, device):
    dense = random_matrix().to(device)
    matrix = ops.sparse_matrix(dense)
    x = torch.randn(rows, 19, device=device, requires_grad=True)
    check_derivatives(lambda x: ops.sparse_map(x, matrix), lambda x: x @ dense.T, (x,))


def test_opcheck_vmap_and_float32():
    dense = random_matrix()
    matrix = ops.sparse_matrix(dense)
    for x in (torch.randn(6, 19), permuted(torch.randn(6, 19))):
        torch.library.opcheck(torch.ops.hamfast.sparse_map.default, (x.requires_grad_(), *matrix))
    batch = torch.randn(3, 6, 19)
    torch.testing.assert_close(torch.vmap(lambda x: ops.sparse_map(x, matrix))(batch), batch @ dense.T)
    single = ops.sparse_map(batch[0].float(), matrix.to(batch.float()))
    torch.testing.assert_close(single, batch[0].float() @ dense.T.float())


def test_errors_name_the_argument():
    matrix = ops.sparse_matrix(random_matrix())
    with pytest.raises(ValueError, match=r"sparse_map: x: expected \[2, 19\]"):
        ops.sparse_map(torch.randn(2, 18), matrix)
    with pytest.raises(ValueError, match="sparse_map: matrix"):
        ops.sparse_map(torch.randn(2, 19, dtype=torch.float32), matrix)
