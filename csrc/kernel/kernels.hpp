// The table of kernels that every instruction set fills, and the arguments they take.
//
// Kernels own the formats: they read and write numbers of any format where they lie, in blocks
// whose inner axis has unit stride, at any alignment. Whether a block's rows are the matrix's rows
// is not their business: a Fortran-ordered matrix comes in with its axes exchanged.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format.hpp"
#include "walk.hpp"

namespace adafactor {

inline constexpr std::size_t kPanelRows = 64;  // rows whose fp32 sums are widened together
inline constexpr std::size_t kChunk = 1024;    // elements whose fp32 sums are widened together
inline constexpr std::size_t kPadding = 64;    // bytes that accumulators are padded to

inline constexpr double kLargestFloat = 0x1.fffffefffffffp127;  // that does not round to infinity

// A sum in two words, `low` being what `high` has lost: closer than a double by so much that, once
// rounded, it does not show in which order it was added up. engine/two_words.hpp adds them.
struct SumWords {
    double high, low;
};

// `rows` runs of `cols` neighbouring elements, `stride` bytes apart. Without an array the format is
// none.
struct Block {
    char* data = nullptr;
    std::ptrdiff_t stride = 0;
    std::size_t rows = 0, cols = 0;
    Format format = Format::none;
    std::ptrdiff_t low = 0;          // if split: bytes from each upper half to its lower one
    Walk walk = Walk::side_by_side;  // how its rows are come to; no bit of a result depends on it
};

// The block of each array that apply takes. Where they exist, m and copy have param's rows and
// cols; copy, of halves, gets what a param of float32 gets, rounded. Only a param is ever split.
// All are walked as param is.
struct StepBlocks {
    Block param, m, grad, copy;
};

// How a float becomes a half: to the nearest, ties to even; or stochastic, to either neighbour, the
// nearer one the more often, by random bits that depend on key, stream and the element's number:
// that of the block's element (i, j) is first + i row_step + j, both being multiples of 64. Split
// halves are the whole float. m, of bfloat16, is rounded likewise, by bits of its own.
struct Rounding {
    bool stochastic = false;
    std::uint32_t key = 0, stream = 0;
    std::uint64_t first = 0, row_step = 0;
};

// The rule of a second moment, v or a running mean, and of u, as in HyperParameters:
//
//   v <- beta2 v + (1 - beta2) (scale grad^2 + eps)
//   u  = grad / max(sqrt(V) + eps_root, root_floor),  V = v + eps_means
//
// or, factored, V = (row + eps_means) (col + eps_means) / max(mean of rows, mean_floor).
struct Moment {
    double beta2, eps, scale, eps_means, eps_root, root_floor, mean_floor;
};

// Statistics of a block of grad that spans one axis of the matrix, so that this axis's running
// means are final within the block (`own`); those of the other axis are summed over blocks
// (`cross`). measure_rows owns the rows, measure_cols the columns.
//
//   own_sum_sq[i]      = sum_j grad[i,j]^2
//   own_new[i]         = own_old[i] moved by own_sum_sq[i] / cross length, as struct Moment says
//   cross_sum_sq[j]   += sum_i grad[i,j]^2
//   cross_weighted[j] += sum_i grad[i,j]^2 / (own_new[i] + eps_means)
struct Statistics {
    Moment moment;
    bool wide;  // sum in fp64 what is narrower, too
    const double* own_old;
    double* own_new;
    double* own_sum_sq;
    double* cross_sum_sq;
    double* cross_weighted;
};

// How apply forms u from grad. Factors are float unless `wide`, then double, and so is arithmetic.
// It must be wide where any of the blocks is of float64.
//
//   separable:  weight u = grad (row col)           no eps matters
//   direct:            u = grad / max(row col + eps_root, root_floor)
struct Factors {
    bool separable;
    bool wide;
    const void* row;
    const void* col;
    double eps_root, root_floor;
};

// What becomes of param by x = weight u:
//
//   param <- param - (x + decay param)              without momentum: rate is 0
//   m <- beta1 m + x
//   param <- param - (rate m + decay param)         with it
struct Descent {
    double weight, decay, beta1, rate;
};

// Whether decay param is no larger than param. Others take double arithmetic: of floats and halves
// the product may be infinite where the new param is not.
inline bool is_narrow_decay(double decay) { return decay >= -1 && decay <= 1; }

struct UnfactoredSums {
    double grad_sq, u_sq;
    bool wide;         // apply must use fp64
    bool v_overflows;  // a new v is beyond the range of v's format
};

inline constexpr std::size_t kLanesOfSmall = 8;     // small matrices that are taken at once
inline constexpr std::size_t kSmallElements = 256;  // of each, at most
// Elements of all matrices of one call, at most.
inline constexpr std::size_t kSmallRun = kSmallElements * kLanesOfSmall;

// The running means of small matrices, (n, rows) and (n, cols).
struct SmallState {
    double *exp_row, *exp_col;
    std::size_t n, rows, cols;
};

// Sums over small matrices, which are added to matrix by matrix, and, unless they are null, places
// for those of each, (n,).
struct SmallSums {
    double grad_sq, u_sq, param_sq;
    double *each_u_sq, *each_param_sq;
};

// The running means of one axis of a matrix after this step. A line whose squares sum to zero has
// no gradient: it is not `live`, and whatever is done with its zeros, u is zero there.
struct Axis {
    std::size_t size;
    double* running_mean;
    double* sum_sq;
    double eps_means;  // added to running means where they are used
};

// Of an axis: the sums of its running means and of its sums of squares, in which a nan makes a nan,
// and of running means with eps_means added the smallest and largest. The sums are rounded once;
// the low words are what that has lost.
struct AxisSummary {
    double sum, sum_sq, smallest, smallest_live, largest_live;
    double sum_low = 0, sum_sq_low = 0;
};

// The groups' sums over the crossed axis, (n_groups, its size); the first group's become the total.
struct CrossSums {
    double* sum_sq;
    double* weighted;
    std::size_t n_groups;
    Moment moment;
    double length;  // of the axis that was summed over
    const double* old;
};

// A line's factor in struct Factors: scale / root if `inverse`, or else root / scale, where root is
// sqrt(running mean + eps_means). `otherwise` where the line is not live, unless `literal`.
struct FactorRule {
    bool inverse, literal;
    double scale, otherwise;
};

struct KernelTable {
    // The sum of squares: in fp32 by panels where elements are narrower than float64, where it is
    // right, or else in fp64.
    SumWords (*sum_squares)(const Block& param);
    // The same in fp64 throughout.
    double (*sum_squares_in_double)(const Block& grad);

    // grad: at most kPanelRows whole rows. scratch: 2 cols doubles, padded.
    void (*measure_rows)(const Block& grad, const Statistics& out, void* scratch);
    // grad: whole columns, at most kChunk of them. scratch: cols doubles, padded.
    void (*measure_cols)(const Block& grad, const Statistics& out, void* scratch);
    // The direct form's RMS(u) needs a sweep of its own.
    SumWords (*sum_u_squares)(const Block& grad, const Factors& factors);
    // Returns, if `sums_param`, what sum_squares makes of the param it wrote.
    SumWords (*apply)(const StepBlocks& blocks, const Factors& factors, const Descent& descent,
                      const Rounding& rounding, bool sums_param);

    // Of one run of at most kChunk elements, v of float64 or float32. `wide`: float64 is among
    // param and grad.
    UnfactoredSums (*measure_unfactored)(const Block& grad, const Block& v, const Moment& moment,
                                         bool wide);
    void (*apply_unfactored)(const StepBlocks& blocks, const Block& v, const Moment& moment,
                             const Descent& descent, const Rounding& rounding, bool wide);

    // Blocks are one run of (n, rows, cols) elements, at most kSmallRun. param may be of no format.
    void (*measure_small)(const Block& param, const Block& grad, const SmallState& state,
                          const Moment& moment, SmallSums& sums);
    // descent: that of all matrices, or, if each has its own, (n,).
    void (*apply_small)(const StepBlocks& blocks, const SmallState& state, const Moment& moment,
                        const Descent* descent, bool each_descent, const Rounding& rounding);

    void (*add_groups)(const CrossSums& sums, std::size_t begin, std::size_t end,
                       const Axis& crossed);
    AxisSummary (*summarize)(const Axis& axis);
    // Whether all numbers of one run, of float32 or float64, are in [0, limit].
    bool (*are_within)(const Block& run, double limit);
    double (*sum_over_means)(const Axis& axis, const double* weighted);
    void (*fill_float_factors)(const Axis& axis, const FactorRule& rule, std::size_t begin,
                               std::size_t end, float* out);
    void (*fill_double_factors)(const Axis& axis, const FactorRule& rule, std::size_t begin,
                                std::size_t end, double* out);

    // Whether halves are what floats are rounded to, or may be if `stochastic`: of one run of at
    // most kChunk elements.
    bool (*are_rounded)(const Block& floats, const Block& halves, bool stochastic);
};

extern const KernelTable kernels_baseline;
extern const KernelTable kernels_v3;
extern const KernelTable kernels_v4;

}  // namespace adafactor
