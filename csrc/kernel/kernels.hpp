// The table of kernels that every instruction set fills, and the arguments they take.
//
// Kernels see blocks whose inner axis has unit stride: `rows` runs of `cols` elements, `stride`
// bytes apart, at any alignment. Whether the block's rows are the matrix's rows is not their
// business: a Fortran-ordered matrix comes in with its axes exchanged.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format.hpp"

namespace adafactor {

inline constexpr std::size_t kPanelRows = 64;  // rows whose fp32 sums are widened together
inline constexpr std::size_t kChunk = 1024;    // elements whose fp32 sums are widened together
inline constexpr std::size_t kPadding = 64;    // bytes that accumulators are padded to

template <class T>
struct Block {
    T* data;
    std::ptrdiff_t stride;
    std::size_t rows, cols;
};

// The bits of a bfloat16 or a float16 (IEEE binary16).
using Half = std::uint16_t;

// Of a block of floats to halves: to nearest, ties to even; or stochastic, to either neighbour, the
// nearer one the more often, by random bits that depend on key, stream and the element's number:
// that of the block's element (i, j) is first + i row_step + j, both being multiples of 64.
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
    bool wide;  // sum fp32 data in fp64
    const double* own_old;
    double* own_new;
    double* own_sum_sq;
    double* cross_sum_sq;
    double* cross_weighted;
};

// What becomes of param by x = weight u:
//
//   param <- param - (x + decay param)              without momentum: rate is 0
//   m <- beta1 m + x
//   param <- param - (rate m + decay param)         with it
struct Move {
    double weight, decay, beta1, rate;
};

// How apply forms u from grad. Factors are float unless `wide`, then double.
//
//   separable:  weight u = grad (row col)           no eps matters
//   direct:            u = grad / max(row col + eps_root, root_floor)
struct Update {
    bool separable;
    bool wide;
    const void* row;
    const void* col;
    Move move;
    double eps_root, root_floor;
    bool sums_param;  // return the sum of squares of what was written, as sum_squares would
};

inline constexpr std::size_t kLanesOfSmall = 8;     // small matrices that are taken at once
inline constexpr std::size_t kSmallElements = 256;  // of each, at most

// The running means of small matrices, (rows, kLanesOfSmall) and (cols, kLanesOfSmall).
struct SmallState {
    double *exp_row, *exp_col;
    std::size_t rows, cols;
};

struct SmallSums {
    double grad_sq[kLanesOfSmall], u_sq[kLanesOfSmall], param_sq[kLanesOfSmall];
};

struct UnfactoredSums {
    double grad_sq, u_sq;
    bool wide;  // u needs double throughout
};

template <class P, class G>
struct Kernels {
    double (*sum_squares)(const Block<const P>& param);
    void (*measure_rows)(const Block<const G>& grad, const Statistics& out, void* scratch);
    void (*measure_cols)(const Block<const G>& grad, const Statistics& out, void* scratch);
    double (*sum_u_squares)(const Block<const G>& grad, const Update& update);
    // m: of param's rows and cols, or without data.
    double (*apply)(const Block<P>& param, const Block<P>& m, const Block<const G>& grad,
                    const Update& update);
    UnfactoredSums (*measure_unfactored)(const G* grad, const double* v, std::size_t n,
                                         const Moment& moment);
    void (*apply_unfactored)(P* param, P* m, const G* grad, double* v, std::size_t n,
                             const Moment& moment, const Move& move, bool wide);
    // Elements of small matrices are (rows, cols, kLanesOfSmall). param may be null, m too.
    void (*measure_small)(const P* param, const G* grad, const SmallState& state,
                          const Moment& moment, SmallSums& sums);
    void (*apply_small)(P* param, P* m, const G* grad, const SmallState& state,
                        const Moment& moment, const Move& move);
};

// Rows of neighbouring elements. `low`: from bfloat16 upper halves to lower ones, in bytes, if
// split.
struct Stored {
    char* data;
    std::ptrdiff_t stride;
    Format format;
    std::ptrdiff_t low;
};

struct StoredArrays {
    Stored param, m, grad, copy;
    std::size_t rows, cols;
};

// Of one of the two formats.
struct HalfKernels {
    void (*widen)(const Block<const Half>& from, const Block<float>& to);
    void (*narrow)(const Block<const float>& from, const Block<Half>& to, const Rounding& rounding);
    double (*sum_squares)(const Block<const Half>& param);
    void (*measure_rows)(const Block<const Half>& grad, const Statistics& out, void* scratch);
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
// and of running means with eps_means added the smallest and largest.
struct Range {
    double sum, sum_sq, smallest, smallest_live, largest_live;
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

// A line's factor in struct Update: scale / root if `inverse`, or else root / scale, where root is
// sqrt(running mean + eps_means). `otherwise` where the line is not live, unless `literal`.
struct FactorRule {
    bool inverse, literal;
    double scale, otherwise;
};

struct KernelTable {
    Kernels<float, float> f32_f32;
    Kernels<float, double> f32_f64;
    Kernels<double, float> f64_f32;
    Kernels<double, double> f64_f64;
    HalfKernels bfloat16, float16;
    // apply, in float, of arrays of any formats; copy gets what param gets. No sums.
    void (*apply_stored)(const StoredArrays& arrays, const Update& update,
                         const Rounding& rounding);
    // A float as a bfloat16 and its own lower 16 bits.
    void (*join)(const Block<const Half>& high, const Block<const Half>& low,
                 const Block<float>& to);
    void (*split)(const Block<const float>& from, const Block<Half>& high, const Block<Half>& low);

    void (*add_groups)(const CrossSums& sums, std::size_t begin, std::size_t end,
                       const Axis& crossed);
    Range (*range_of)(const Axis& axis);
    double (*sum_over_means)(const Axis& axis, const double* weighted);
    void (*fill_float_factors)(const Axis& axis, const FactorRule& rule, std::size_t begin,
                               std::size_t end, float* out);
    void (*fill_double_factors)(const Axis& axis, const FactorRule& rule, std::size_t begin,
                                std::size_t end, double* out);
};

extern const KernelTable kernels_baseline;
extern const KernelTable kernels_v3;
extern const KernelTable kernels_v4;

}  // namespace adafactor
