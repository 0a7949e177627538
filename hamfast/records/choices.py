"""Numbers that stand for a choice, the same in Python, C++ and Triton."""

from __future__ import annotations

from typing import ClassVar


class Choices:
    """A class attribute per choice; its number is its position.

    In C++ it is an ``enum class``, or, with a ``prefix``, an enum whose enumerators start with it,
    for use as an index.
    """

    prefix: ClassVar[str] = ""

    @classmethod
    def numbers(cls) -> dict[str, int]:
        """The number of each name in lower case, in the order of the class."""
        return {name.lower(): value for name, value in vars(cls).items() if isinstance(value, int)}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names in lower case, in the order of their numbers."""
        found = cls.numbers()
        return tuple(sorted(found, key=found.__getitem__))


class Slot(Choices):
    """The argument of the product's form F(x, y, w, g) in which a derivative is taken."""

    prefix = "slot"
    X, Y, W, G = range(4)


class RowOf(Choices):
    """What an operand has a row for: every edge, or every node, which edges reach as their sender
    or receiver.
    """

    prefix = "row_of"
    EDGE, SENDER, RECEIVER = range(3)


class Layout(Choices):
    """How irreps lie in memory: rows of mul_ir, rows of ir_mul, or one matrix ``[rows, d, mul]``
    per irreps block.
    """

    MUL_IR, IR_MUL, BLOCKS = range(3)


class Storage(Choices):
    """The dtype of rows."""

    FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)


class Pairing(Choices):
    """Which channels of x meet which of y: every u every v, u only u, or u every v > u."""

    OUTER, TIED, TRIANGULAR = range(3)


class MatrixProduct(Choices):
    """Which matrix of C = A B comes out: C itself, A = C B^T, or B = A^T C."""

    C, A, B = range(3)


class OuterSlot(Choices):
    """The argument of the form sum over edges of <node, factor x channels> in which a derivative is
    taken.
    """

    prefix = "outer"
    NODE, FACTOR, CHANNELS = range(3)


class WeightSlot(Choices):
    """The argument of the edge frame's form sum factor weight scale matrix in which a derivative is
    taken.
    """

    prefix = "slot"
    WEIGHT, SCALE, MATRIX = range(3)


class Score(Choices):
    """What attention's raw score z is: <q, k>, <vector, act(q + k)>, or 0."""

    prefix = "score"
    DOT, ADDITIVE, GIVEN = range(3)


class ScoreActivation(Choices):
    """The activation of additive scores; the second is Equiformer's."""

    prefix = "act"
    LEAKY_RELU, SMOOTH_LEAKY_RELU, SILU = range(3)


class Weighting(Choices):
    """What turns a score into a weight."""

    prefix = "weight"
    SOFTMAX, IDENTITY, SILU, SIGMOID, SOFTPLUS = range(5)


class AttentionWanted(Choices):
    """Bits of attention's results that are made only if they are wanted."""

    prefix = "want"
    WEIGHTS, LOGITS, OUT_ON_EDGE = 1, 2, 4


CHOICES = (
    Slot,
    RowOf,
    Layout,
    Storage,
    Pairing,
    MatrixProduct,
    OuterSlot,
    WeightSlot,
    Score,
    ScoreActivation,
    Weighting,
    AttentionWanted,
)
"""All of them, in the order of the C++ header."""
