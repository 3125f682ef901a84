// The native interface: one Adafactor step on strided arrays. No Python, no SIMD type.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adafactor {

enum class DType { float32, float64 };

// A strided array of `dtype`. `shape` and `strides` have `ndim` entries; strides are in bytes, of
// any sign, and need not be multiples of the item size.
struct Array {
    char* data;
    DType dtype;
    int ndim;
    const std::ptrdiff_t* shape;
    const std::ptrdiff_t* strides;
};

inline std::size_t size_of(const Array& array) {
    std::size_t size = 1;
    for (int d = 0; d < array.ndim; ++d) size *= std::size_t(array.shape[d]);
    return size;
}

struct HyperParameters {
    double lr;
    double beta2;
    double eps;
    double clip_threshold;  // infinity turns clipping off
    bool scale_parameter;
};

class CarriedSquares;

// One tensor with its state. A matrix is factored: exp_row (rows,) and exp_col (cols,), v is null.
// Anything else keeps v, C-contiguous and of the tensor's shape, and exp_row, exp_col are null.
struct Tensor {
    Array param;
    Array grad;
    double* exp_row;
    double* exp_col;
    double* v;
    CarriedSquares* carried;  // null: RMS(param) is measured, if it is needed
};

// Why a step cannot be taken: what would not be finite after it.
enum class Fault {
    none,
    grad,           // an element, or the sum of the squares (float64 only), is not finite
    param,          // the same, where it would spread through RMS(param)
    second_moment,  // the state is not finite, or it is zero where eps is zero too
};

struct Outcome {
    Fault fault = Fault::none;
    // For grad and param the first bad element in C order; -1 if only their sum overflows.
    std::ptrdiff_t index = -1;
};

// Takes one step, in place, on at most `threads` threads. With a fault nothing is written, unless
// `propagate` asks for what IEEE arithmetic makes of it. A tensor without elements stays as it is.
// The result is the same, bit for bit, for every number of threads and every instruction set. May
// throw std::bad_alloc, before any write.
Outcome step(const Tensor& tensor, const HyperParameters& hyper, bool propagate, int threads);

}  // namespace adafactor
