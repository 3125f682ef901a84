// The nans that a step leaves where it propagates what is not finite: all of the same bits, quiet,
// without sign and payload.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "engine/geometry.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

// Makes all nans of n numbers the same.
template <class Bits>
void make_one(char* run, std::size_t n, Bits infinity, Bits nan) {
    constexpr Bits magnitude = Bits(~Bits(0)) >> 1;
    for (std::size_t k = 0; k < n; ++k) {
        Bits bits;
        std::memcpy(&bits, run + k * sizeof(Bits), sizeof(Bits));
        if ((bits & magnitude) > infinity) std::memcpy(run + k * sizeof(Bits), &nan, sizeof(Bits));
    }
}

void make_one(const Block& run) {
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
        case Format::none:
            return;
    }
}

}  // namespace

// A step that leaves finite what is so costs what it does where nothing is propagated. After any
// other, all is looked at.
void TensorStep::make_nans_one(const Team& team) {
    if (is_sound_ && tensor_.known != nullptr && tensor_.known->finite) {
        remember();
        tensor_.known->finite = true;
        return;
    }
    const bool finite = rewrite_nans(team);
    forget();
    if (tensor_.known != nullptr) tensor_.known->finite = finite;
}

// Returns whether all is finite.
bool TensorStep::rewrite_nans(const Team& team) const {
    std::atomic<bool> all_finite{true};
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
                               if (std::isfinite(kernels_.sum_squares(run).high)) continue;
                               if (first_infinite(run) < 0) continue;
                               all_finite = false;
                               make_one(run);
                               if (run.data == copy) order.scatter(run, 0, k, n);
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
    if (tensor_.v != nullptr) {
        rewrite_state(tensor_.v, size);
    } else {
        rewrite_state(tensor_.exp_row, size / tensor_.param.shape[tensor_.col_axis]);
        rewrite_state(tensor_.exp_col, size / tensor_.param.shape[tensor_.row_axis]);
    }
    return all_finite;
}

}  // namespace adafactor
