// The nans that a step leaves where it propagates what is not finite: all of the same bits, quiet,
// without sign and payload.
#include <algorithm>
#include <cstring>

#include "engine/geometry.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

// Makes all nans of n numbers the same; returns whether there are any.
template <class Bits>
bool make_one(char* run, std::size_t n, Bits infinity, Bits nan) {
    constexpr Bits magnitude = Bits(~Bits(0)) >> 1;
    const auto is_nan = [&](std::size_t k) {
        Bits bits;
        std::memcpy(&bits, run + k * sizeof(Bits), sizeof(Bits));
        return (bits & magnitude) > infinity;
    };
    bool any = false;
    for (std::size_t k = 0; k < n; ++k) any |= is_nan(k);
    if (!any) return false;
    for (std::size_t k = 0; k < n; ++k)
        if (is_nan(k)) std::memcpy(run + k * sizeof(Bits), &nan, sizeof(Bits));
    return true;
}

bool make_one(const Block& run) {
    switch (run.format) {
        case Format::float64:
            return make_one<std::uint64_t>(run.data, run.cols, 0x7ff0000000000000,
                                           0x7ff8000000000000);
        case Format::float32:
            return make_one<std::uint32_t>(run.data, run.cols, 0x7f800000, 0x7fc00000);
        case Format::float16:
            return make_one<std::uint16_t>(run.data, run.cols, 0x7c00, 0x7e00);
        case Format::bfloat16:
        case Format::split:  // steps leave zeros in the lower halves of nans
            return make_one<std::uint16_t>(run.data, run.cols, 0x7f80, 0x7fc0);
        default:
            return false;
    }
}

}  // namespace

void TensorStep::rewrite_nans(const Team& team) const {
    const auto rewrite = [&](const Array& array) {
        const ElementOrder order({&array});
        team.for_tasks((order.size() + kTaskElements - 1) / kTaskElements, Order::forwards,
                       [&](std::size_t task, int, char*) {
                           const std::size_t end =
                               std::min((task + 1) * kTaskElements, order.size());
                           for (std::size_t k = task * kTaskElements; k < end; k += kChunk) {
                               alignas(64) char copy[kChunk * sizeof(double)];
                               const std::size_t n = std::min(kChunk, end - k);
                               const Block run = order.run(0, k, n, copy);
                               if (make_one(run) && run.data == copy) order.scatter(run, 0, k, n);
                           }
                       });
    };
    for (const Array* array : {&tensor_.param, &tensor_.m, &tensor_.copy})
        if (array->data != nullptr) rewrite(*array);
    const auto rewrite_state = [&](void* numbers, std::ptrdiff_t n) {
        const auto item = std::ptrdiff_t(item_size(tensor_.state_format));
        rewrite({static_cast<char*>(numbers), tensor_.state_format, 1, &n, &item});
    };
    const auto size = std::ptrdiff_t(size_of(tensor_.param));
    if (tensor_.v != nullptr) return rewrite_state(tensor_.v, size);
    rewrite_state(tensor_.exp_row, size / tensor_.param.shape[tensor_.col_axis]);
    rewrite_state(tensor_.exp_col, size / tensor_.param.shape[tensor_.row_axis]);
}

}  // namespace adafactor
