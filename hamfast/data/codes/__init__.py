"""What DFT codes write themselves: one module per code, and the list of them.

Each module has functions of the shape that :class:`hamfast.data.codes.native.Code` wants. A new
code is such a module, and its entry in :data:`CODES`.
"""

from hamfast.data.codes import abacus, cp2k, fhi_aims, openmx, pyscf, siesta
from hamfast.data.codes.native import NativeFormat

CODES: tuple[NativeFormat, ...] = tuple(NativeFormat(code) for code in (openmx, siesta, abacus, cp2k, fhi_aims, pyscf))
"""The formats of all codes."""
