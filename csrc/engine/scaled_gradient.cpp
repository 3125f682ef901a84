#include "engine/scaled_gradient.hpp"

#include <algorithm>
#include <new>

#include "engine/geometry.hpp"
#include "engine/sharded_tensor.hpp"
#include "engine/strided.hpp"
#include "engine/threads.hpp"

namespace adafactor {

const Tensor& with_scaled_gradient(const Tensor& tensor, double grad_scale, int threads,
                                   Scratch& for_step, int& exponent) {
    exponent = std::ilogb(grad_scale);
    const Array& grad = tensor.grad;
    const std::size_t size = grad.data == nullptr ? 0 : size_of(grad);
    double* const scaled = for_step.take<double>(size);
    auto* const strides = for_step.take<std::ptrdiff_t>(std::size_t(grad.ndim));
    auto stride = std::ptrdiff_t(sizeof(double));
    for (int d = grad.ndim - 1; d >= 0; --d) {
        strides[d] = stride;
        stride *= grad.shape[d];
    }
    const int by = exponent;
    parallel_for((size + kTaskElements - 1) / kTaskElements, threads, [&](std::size_t task, int) {
        const std::size_t end = std::min((task + 1) * kTaskElements, size);
        for (std::size_t k = task * kTaskElements; k < end; ++k)
            scaled[k] =
                std::ldexp(number_of({element_at(grad, k), 0, 1, 1, grad.format, grad.low}), by);
    });
    auto* const own = new (for_step.take<Tensor>(1)) Tensor(tensor);
    own->grad = {reinterpret_cast<char*>(scaled), Format::float64, grad.ndim, grad.shape, strides};
    own->hyper.grad_scale = std::ldexp(grad_scale, -exponent);
    own->measured = nullptr;
    return *own;
}

}  // namespace adafactor
