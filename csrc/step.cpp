#include "step.hpp"

#include <cmath>

#include "dispatch/isa.hpp"

namespace adafactor {
namespace {

template <class P, class G>
Outcome step_with(const Tensor& tensor, const HyperParameters& hyper, bool propagate, int threads,
                  const KernelTable& table, const Kernels<P, G>& kernels) {
    const bool factored = tensor.v == nullptr;
    return factored ? step_factored(tensor, hyper, propagate, threads, table, kernels)
                    : step_unfactored(tensor, hyper, propagate, threads, table, kernels);
}

// The first element in C order whose square is not finite, or -1.
template <class T>
std::ptrdiff_t first_bad(const Array& array) {
    const auto size = std::ptrdiff_t(size_of(array));
    for (std::ptrdiff_t k = 0; k < size; ++k) {
        const char* p = array.data;
        for (std::ptrdiff_t d = array.ndim - 1, rest = k; d >= 0; --d) {
            p += rest % array.shape[d] * array.strides[d];
            rest /= array.shape[d];
        }
        T x;
        __builtin_memcpy(&x, p, sizeof(T));
        if (!std::isfinite(double(x) * double(x))) return k;
    }
    return -1;
}

}  // namespace

Outcome step(const Tensor& tensor, const HyperParameters& hyper, bool propagate, int threads) {
    if (size_of(tensor.param) == 0) return {};

    const KernelTable& table = running_kernels();
    const bool p32 = tensor.param.dtype == DType::float32;
    const bool g32 = tensor.grad.dtype == DType::float32;
    Outcome outcome = p32 && g32
                          ? step_with(tensor, hyper, propagate, threads, table, table.f32_f32)
                      : p32 ? step_with(tensor, hyper, propagate, threads, table, table.f32_f64)
                      : g32 ? step_with(tensor, hyper, propagate, threads, table, table.f64_f32)
                            : step_with(tensor, hyper, propagate, threads, table, table.f64_f64);

    if (outcome.fault == Fault::grad || outcome.fault == Fault::param) {
        const Array& array = outcome.fault == Fault::grad ? tensor.grad : tensor.param;
        outcome.index =
            array.dtype == DType::float32 ? first_bad<float>(array) : first_bad<double>(array);
    }
    return outcome;
}

}  // namespace adafactor
