// Choices and rows of tables that Python and the kernels share. Written by `python -m
// hamfast.records.write` from hamfast/records: change it there.
#pragma once

#include <cstdint>

namespace hamfast {

// The argument of the product's form F(x, y, w, g) in which a derivative is taken.
enum Slot : int64_t {
  slot_x = 0,
  slot_y = 1,
  slot_w = 2,
  slot_g = 3,
};

// What an operand has a row for: every edge, or every node, which edges reach as their sender or
// receiver.
enum RowOf : int64_t {
  row_of_edge = 0,
  row_of_sender = 1,
  row_of_receiver = 2,
};

// How irreps lie in memory: rows of mul_ir, rows of ir_mul, or one matrix [rows, d, mul] per irreps
// block.
enum class Layout : int64_t {
  mul_ir = 0,
  ir_mul = 1,
  blocks = 2,
};

// The dtype of rows.
enum class Storage : int64_t {
  float32 = 0,
  float64 = 1,
  bfloat16 = 2,
  float16 = 3,
};

// Which channels of x meet which of y: every u every v, u only u, or u every v > u.
enum class Pairing : int64_t {
  outer = 0,
  tied = 1,
  triangular = 2,
};

// Which matrix of C = A B comes out: C itself, A = C B^T, or B = A^T C.
enum class MatrixProduct : int64_t {
  c = 0,
  a = 1,
  b = 2,
};

// The argument of the form sum over edges of <node, factor x channels> in which a derivative is
// taken.
enum OuterSlot : int64_t {
  outer_node = 0,
  outer_factor = 1,
  outer_channels = 2,
};

// The argument of the edge frame's form sum factor weight scale matrix in which a derivative is
// taken.
enum WeightSlot : int64_t {
  slot_weight = 0,
  slot_scale = 1,
  slot_matrix = 2,
};

// What attention's raw score z is: <q, k>, <vector, act(q + k)>, or 0.
enum Score : int64_t {
  score_dot = 0,
  score_additive = 1,
  score_given = 2,
};

// The activation of additive scores; the second is Equiformer's.
enum ScoreActivation : int64_t {
  act_leaky_relu = 0,
  act_smooth_leaky_relu = 1,
  act_silu = 2,
};

// What turns a score into a weight.
enum Weighting : int64_t {
  weight_softmax = 0,
  weight_identity = 1,
  weight_silu = 2,
  weight_sigmoid = 3,
  weight_softplus = 4,
};

// Bits of attention's results that are made only if they are wanted.
enum AttentionWanted : int64_t {
  want_weights = 1,
  want_logits = 2,
  want_out_on_edge = 4,
};

// A path of the general kernel.
struct Path {
  // A number of Pairing.
  int64_t pairing;
  // 1 if all pairs meet every output channel, 0 if each goes to one.
  int64_t mixing;
  // Multiplicities.
  int64_t n1, n2, n3;
  // 2 l + 1.
  int64_t d1, d2, d3;
  // First element in the rows of x, y and g.
  int64_t offset1, offset2, offset3;
  // First element in the row of w; -1 without a weight.
  int64_t weight_offset;
  // Without mixing the pair (u, v) goes to output channel out_u u + out_v v.
  int64_t out_u, out_v;
  // Entries of the coupling list.
  int64_t cg_begin, cg_end;
};
static_assert(sizeof(Path) == 16 * sizeof(int64_t));

// n channels of one irreps block of x times one channel of y: a task of the channel-wise kernels.
struct ChannelTask {
  // Channels.
  int64_t n;
  // 2 l + 1.
  int64_t d1, d2, d3;
  // First element in x's padded blocks, and elements from component to component.
  int64_t x_at, x_stride;
  // In y's row.
  int64_t y_offset;
  // In g's padded blocks.
  int64_t g_at, g_stride;
  // First element in w's row (-1 without a weight), and elements from channel to channel.
  int64_t w_offset, w_stride;
  // First element, and the padded length of a row, of the couplings C[j][k * d1 + i].
  int64_t coupling_at, coupling_size;
  // C's entries that are not 0.
  int64_t entries_begin, entries_end;
  // 1 if the matrix is a multiple of the unit matrix, because y is a scalar.
  int64_t diagonal;
  // Row of the table of x's blocks.
  int64_t x_block;
  // Row of the table of g's blocks.
  int64_t g_block;
  // First channel there.
  int64_t g_first;
};
static_assert(sizeof(ChannelTask) == 19 * sizeof(int64_t));

// An irreps block of x or g: channels [mul] of d components.
struct ChannelBlock {
  // Channels, and components of each.
  int64_t mul, d;
  // First element in a row of the tensor.
  int64_t offset;
  // First element in the padded blocks, and elements from component to component.
  int64_t at, stride;
};
static_assert(sizeof(ChannelBlock) == 5 * sizeof(int64_t));

// A Clebsch-Gordan coefficient of a task that is not 0.
struct CouplingEntry {
  // Components of x, y and g.
  int64_t i, j, k;
  // Element k d1 + i of the task's matrix.
  int64_t p;
  // In the task's couplings, from coupling_at on.
  int64_t at;
};
static_assert(sizeof(CouplingEntry) == 5 * sizeof(int64_t));

// The sizes of a plan.
struct ProductDims {
  // Row lengths.
  int64_t x, y, w, g;
  // Elements of scratch memory that a row of the general kernel needs.
  int64_t scratch;
  // Elements of a row's padded blocks.
  int64_t x_padded, g_padded;
  // Longest coupling_size of a task.
  int64_t max_coupling;
  // 1 if every weight belongs to a task.
  int64_t covers_weights;
  // Tells this plan's channel-wise tables from those of others.
  int64_t key;
};
static_assert(sizeof(ProductDims) == 10 * sizeof(int64_t));

// One matrix of irreps_linear: from the channels of a block of A to those of a block of C. C[r, w,
// m] += sum over u < k of A[r, u, m] B[b_offset + s b_step + u b_stride + w], for m < d and w < n,
// with s the row's species. Tasks of one block of C follow each other.
struct LinearTask {
  // Components, 2 l + 1.
  int64_t d;
  // Channels of both blocks.
  int64_t k, n;
  // Where the blocks begin in a row of A and of C.
  int64_t a_offset, c_offset;
  // In B: the first element, from one row of the matrix to the next, from one species to the next.
  int64_t b_offset, b_stride, b_step;
};
static_assert(sizeof(LinearTask) == 8 * sizeof(int64_t));

// Elements of a row of A and of C, and of all of B, in irreps_linear.
struct LinearDims {
  // 1 if every element of a row belongs to a task.
  int64_t a, b, c, covers_a, covers_c;
};
static_assert(sizeof(LinearDims) == 5 * sizeof(int64_t));

// The pairs of one channel v of y on a path, times that path's weights: a task of row_matmul. C[m,
// w] += sum over u < n of A[m, a_first + u] B[b_offset + u b_stride + w], for m < d and w <
// c_columns.
struct RowTask {
  // Components.
  int64_t d;
  // Pairs.
  int64_t n;
  // Elements of a row of A in the blocks before this one.
  int64_t a_block;
  // Columns of the block of A, and the first of them.
  int64_t a_columns, a_first;
  // In B's row: first element, and elements from one pair to the next.
  int64_t b_offset, b_stride;
  // The block of C, as that of A; the task has all its columns.
  int64_t c_block, c_columns;
  // 1 if the task is the first one of its block of C.
  int64_t begins;
};
static_assert(sizeof(RowTask) == 10 * sizeof(int64_t));

// Elements of a row of A, B and C in row_matmul.
struct RowDims {
  // 1 if every element of B belongs to a task.
  int64_t a, b, c, covers_weights;
};
static_assert(sizeof(RowDims) == 4 * sizeof(int64_t));

// What the channel-wise CUDA kernel of a plan is compiled for; sets of x, y, w, g are bits.
struct ChannelVariant {
  // 1 for dF/dg, 0 for those of dF/dx, dF/dy, dF/dw that are wanted.
  int64_t forward;
  // Which of them there are, and which derivatives are made.
  int64_t operands, tangents, wanted;
  // A number of Storage.
  int64_t storage;
  // Numbers of Layout.
  int64_t x_layout, g_layout;
  // 1 if all edges share one row of weights.
  int64_t shared_weights;
  // Length of the row that the kernel makes an edge's weights from; 0 if it reads them.
  int64_t hidden;
  // Of the tensor cores, as kernels/tensor_core.cuh has them.
  int64_t passes;
};
static_assert(sizeof(ChannelVariant) == 10 * sizeof(int64_t));

// An irreps block of an edge frame's operand; for each m = 0 ... l_max a FrameColumns follows in
// the row.
struct FrameBlock {
  // Channels, and degree.
  int64_t mul, l;
  // 1 if its parity is that of the spherical harmonics.
  int64_t natural;
  // In a row of the operand.
  int64_t offset;
};
static_assert(sizeof(FrameBlock) == 4 * sizeof(int64_t));

// Where the components (+m, -m) of a FrameBlock lie in the frame tensor.
struct FrameColumns {
  // First element of the matrix of this m, in units of as many elements as there are edges; -1 if
  // this m is not stored.
  int64_t start;
  // Elements per edge, which are width or twice as many.
  int64_t stride;
  // Of a row of the matrix.
  int64_t width;
  // Of the first channel of the irreps block.
  int64_t column;
};
static_assert(sizeof(FrameColumns) == 4 * sizeof(int64_t));

// Adds factor weight[u, w] scale[w] to matrix[u * stride + w].
struct MatrixTerm {
  // Offsets.
  int64_t weight, scale, matrix;
  // From row to row of the matrix.
  int64_t stride;
  // Of u, and of w.
  int64_t rows, columns;
};
static_assert(sizeof(MatrixTerm) == 6 * sizeof(int64_t));

// A monomial of a symmetric contraction that is the product of two others. Monomial 0 is 1, the
// next are the components of x, then come these, in order.
struct Product {
  // Monomials; the factor is a component of x.
  int64_t parent, factor;
};
static_assert(sizeof(Product) == 2 * sizeof(int64_t));

// Terms of one component of the result that share all factors but one.
struct ContractionGroup {
  // The monomial of the factors that they share.
  int64_t prefix;
  // Of the result.
  int64_t component;
  // Where its terms begin, and how many they are.
  int64_t first, terms;
};
static_assert(sizeof(ContractionGroup) == 4 * sizeof(int64_t));

// A number other than 0 of the matrix from paths' weights to terms' coefficients, or of its
// transpose.
struct ContractionEntry {
  // Path and term, or term and path.
  int64_t source, target;
};
static_assert(sizeof(ContractionEntry) == 2 * sizeof(int64_t));

// A block of the result: d components of each channel.
struct ContractionBlock {
  // Components, and those of the blocks before it.
  int64_t d, first;
};
static_assert(sizeof(ContractionBlock) == 2 * sizeof(int64_t));

// The sizes of a symmetric contraction's plan.
struct ContractionDims {
  // Components per channel.
  int64_t x, g;
  // Weights per channel.
  int64_t paths;
  // Tells this plan's tables from those of others.
  int64_t key;
};
static_assert(sizeof(ContractionDims) == 4 * sizeof(int64_t));

}  // namespace hamfast
