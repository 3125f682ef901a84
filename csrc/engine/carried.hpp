// RMS(param) without reading param: apply has just written what the next step would read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// The sums of squares of a parameter's tiles as its last step left them, for the next step.
//
// They are wrong if somebody else has written to the parameter since. So every step sums a
// sixteenth of the tiles again, in rotation, and all of them where one differs by a bit.
class CarriedSquares {
public:
    void forget() { known_ = false; }

    // Before a step of this array measures. May throw std::bad_alloc.
    void expect(const Array& param, std::size_t n_tiles) {
        if (!known_ || !is_same(param) || sums_.size() != n_tiles) {
            known_ = false;
            sums_.assign(n_tiles, {});
            strides_.assign(param.strides, param.strides + param.ndim);
            data_ = param.data;
            format_ = param.format;
            first_checked_ = 0;
        }
    }

    // Whether this step has to sum the tile itself.
    bool is_unknown(std::size_t tile) const {
        const std::size_t n = sums_.size();
        return !known_ || (tile + n - first_checked_) % n < n_checked();
    }

    // Completes this step's own sums, those of unknown tiles, by the carried ones. False, with all
    // tiles unknown, if a tile that was carried was summed again and differs.
    bool complete(SumWords* sums) {
        if (!known_) return true;
        for (std::size_t tile = 0; tile < sums_.size(); ++tile) {
            if (is_unknown(tile) && std::memcmp(&sums[tile], &sums_[tile], sizeof(SumWords)) != 0) {
                known_ = false;
                return false;
            }
        }
        for (std::size_t tile = 0; tile < sums_.size(); ++tile)
            if (!is_unknown(tile)) sums[tile] = sums_[tile];
        first_checked_ = (first_checked_ + n_checked()) % sums_.size();
        return true;
    }

    // What apply fills, each tile once, and then declares known.
    SumWords* written() {
        known_ = false;
        return sums_.data();
    }
    void remember() { known_ = true; }

private:
    static constexpr std::size_t kRotation = 16;  // steps in which every tile is summed again

    std::size_t n_checked() const { return (sums_.size() + kRotation - 1) / kRotation; }

    bool is_same(const Array& param) const {
        return param.data == data_ && param.format == format_ &&
               std::equal(strides_.begin(), strides_.end(), param.strides,
                          param.strides + param.ndim);
    }

    bool known_ = false;
    std::size_t first_checked_ = 0;
    std::vector<SumWords> sums_;
    char* data_ = nullptr;
    Format format_ = Format::float32;
    std::vector<std::ptrdiff_t> strides_;
};

}  // namespace adafactor
