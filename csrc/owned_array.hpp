// An array whose shape and strides are its own: those that it was given may not last.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "adafactor.hpp"

namespace adafactor {

class OwnedArray {
public:
    OwnedArray() = default;
    explicit OwnedArray(const Array& array)
        : array_(array), axes_(array.shape, array.shape + array.ndim) {
        axes_.insert(axes_.end(), array.strides, array.strides + array.ndim);
    }

    // Borrows from this object.
    Array array() const {
        Array array = array_;
        array.shape = axes_.data();
        array.strides = axes_.data() + array_.ndim;
        return array;
    }

    // Whether an array is of the same memory, format, shape and strides. None is as none.
    bool is(const Array& other) const {
        if (other.data == nullptr || array_.data == nullptr) return other.data == array_.data;
        return other.format == array_.format && other.low == array_.low &&
               lies_at(other.data, other.ndim, other.shape, other.strides);
    }

    // The same, but for the format.
    template <class Length>
    bool lies_at(const void* data, int ndim, const Length* shape, const Length* strides) const {
        const auto n = std::ptrdiff_t(array_.ndim);
        return data == array_.data && ndim == array_.ndim &&
               std::equal(axes_.begin(), axes_.begin() + n, shape) &&
               std::equal(axes_.begin() + n, axes_.end(), strides);
    }

    Format format() const { return array_.format; }

private:
    Array array_{};
    std::vector<std::ptrdiff_t> axes_;  // the shape, then the strides
};

}  // namespace adafactor
