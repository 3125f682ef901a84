// The native interface: one Adafactor step of a list of strided arrays. No Python, no SIMD type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "format.hpp"
#include "random_stream.hpp"

namespace adafactor {

inline bool is_half(Format format) {
    return format == Format::bfloat16 || format == Format::float16 || format == Format::split;
}

inline std::size_t item_size(Format format) {
    return format == Format::float64 ? 8 : format == Format::float32 ? 4 : 2;
}

// A strided array. `shape` and `strides` have `ndim` entries; strides are in bytes, of any sign,
// and need not be multiples of the item size.
struct Array {
    char* data;
    Format format;
    int ndim;
    const std::ptrdiff_t* shape;
    const std::ptrdiff_t* strides;
    std::ptrdiff_t low = 0;  // if split, bytes from each upper half to its lower one
};

inline std::size_t size_of(const Array& array) {
    std::size_t size = 1;
    for (int d = 0; d < array.ndim; ++d) size *= std::size_t(array.shape[d]);
    return size;
}

// The numbers of one step of one tensor. What depends on t has been computed. The defaults are
// those of the twenty lines of NumPy, convention "numpy".
//
//   g       = grad_scale grad
//   q       = g^2 + eps_squares            its running means are exp_row and exp_col, or v
//   V       = (exp_row + eps_means) (exp_col + eps_means) / max(mean(exp_row), mean_floor)
//             or v + eps_means
//   u       = g / max(sqrt(V) + eps_root, root_floor)
//   divisor = max(1, RMS(u) / clip_threshold)
//   size    = lr max(eps_scale, RMS(param)), or lr
//   param  <- (1 - decay - decay_by_step size) param - x,  where x is
//             size u / divisor                                              without momentum
//             m <- beta1 m + (1 - beta1) size u / divisor                   with it
//             size m, m <- beta1 m + (1 - beta1) u / divisor                if momentum_of_u
struct HyperParameters {
    double lr;
    double beta2;
    double eps_squares, eps_root;
    double eps_means = 0, root_floor = 0, mean_floor = 0;
    double clip_threshold;  // infinity turns clipping off
    bool scale_parameter;
    double eps_scale = 0;
    bool scale_after_decay = false;  // RMS(param) is that of (1 - decay) param
    bool per_matrix = false;         // RMS(u) and RMS(param) are each matrix's own
    double beta1 = 0;                // matters to a tensor with m
    bool momentum_of_u = false;
    double decay = 0, decay_by_step = 0;
    double grad_scale = 1;
};

class CarriedSquares;
class Measured;
struct KnownNumbers;
struct Part;
struct Box;

// One tensor with its state. Halves are read as float32, and the new param is a float32 until it is
// rounded. A factored tensor is a batch of matrices over all axes but row_axis and col_axis; it has
// exp_row (matrices, rows) and exp_col (matrices, cols), and its v is null. Any other tensor has v,
// C-contiguous and of the tensor's shape, and its exp_row and exp_col are null. These are float64
// or float32: either way the new ones are found in float64, u is formed of them, and what is kept
// is rounded once, to nearest.
struct Tensor {
    Array param;
    Array grad;
    int row_axis, col_axis;
    void* exp_row;
    void* exp_col;
    void* v;
    Format state_format;
    Array m;     // the first moment, of param's shape; its data is null if there is none
    Array copy;  // halves, of param's shape, that get a float32 param rounded; null likewise
    CarriedSquares* carried;  // null: RMS(param) is measured, if it is needed
    KnownNumbers* known;      // null: all numbers are looked at, where it matters
    HyperParameters hyper;
    bool stochastic = false;       // halves are rounded at random, not to the nearest
    RandomStream random{};         // the random bits that they are rounded by
    Measured* measured = nullptr;  // what was measured of it before (engine/measured.hpp), or null
    const Part* part = nullptr;    // of a tensor that lies in pieces (engine/part.hpp), or null
    const Box* box = nullptr;      // likewise, where these arrays are the only box of a part
};

// Why a step cannot be taken: what would not be finite after it.
enum class Fault {
    none,
    grad,           // an element, or the sum of the squares (float64 only), is not finite
    param,          // the same, where it would spread through RMS(param)
    second_moment,  // the state is not finite, negative, larger than any gradient makes it, or zero
                    // where nothing is added to it
    first_moment,   // an element, or the sum of the squares (float64 only), is not finite
    result,         // an element of param, copy or m would not be, though all that makes it is
    state_format,   // a number of the new state is beyond the float32 that it is kept in
};

// What one tensor's step did, and the numbers that it went by; nan what was not needed.
struct TensorReport {
    Fault fault = Fault::none;
    bool stepped = false;
    double grad_sq = 0;  // sum of grad^2, before grad_scale
    double rms_grad = std::numeric_limits<double>::quiet_NaN();
    double rms_u = std::numeric_limits<double>::quiet_NaN();  // before the clip
    double clip_divisor = std::numeric_limits<double>::quiet_NaN();
    double rms_param = std::numeric_limits<double>::quiet_NaN();
    double step_size = std::numeric_limits<double>::quiet_NaN();  // of u, before the clip
};

struct Options {
    bool propagate;    // what is not finite goes where IEEE arithmetic takes it
    bool all_or_none;  // with a fault nothing of the whole list is written
    bool skips;        // a tensor with a fault is left out, if not all_or_none
    int threads;       // at most
    double max_grad_norm = std::numeric_limits<double>::infinity();
    double skip_norm_above = std::numeric_limits<double>::infinity();
};

// The first tensor with a fault that kept the step from being taken, if there is one.
struct Outcome {
    Fault fault = Fault::none;
    std::size_t tensor = 0;
    // The first bad element in C order, of grad, param or m; -1 if only their sum overflows, and of
    // a second moment. Of a result the first in param's memory.
    std::ptrdiff_t index = -1;
    double grad_norm =
        std::numeric_limits<double>::quiet_NaN();  // of all tensors, after grad_scale
    bool is_spike = false;                         // that is above skip_norm_above
};

// Whether `copy` of a tensor with `known` still is what its param of float32 was rounded to, in
// this turn's sixteenth.
bool is_still_rounded(const Tensor& tensor, int threads);

// Takes one step of each tensor, in place, and fills one report for each. If a tensor has a fault,
// all_or_none leaves the whole list as it was; otherwise that tensor stays as it was, and so do
// those behind it unless `skips`. A tensor without elements stays as it is. If the norm of all
// gradients exceeds max_grad_norm, they are scaled down to it first, as torch's clip_grad_norm_
// does; that makes every step all_or_none. So does a finite skip_norm_above: a step whose norm is
// finite and above it leaves the whole list as it was. The result is the same, bit for bit, for
// every number of threads and every instruction set. May throw std::bad_alloc, before any write.
Outcome step(const Tensor* tensors, std::size_t n_tensors, const Options& options,
             TensorReport* reports);

}  // namespace adafactor
