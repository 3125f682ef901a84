// Where the elements of strided arrays lie, and copies of their bytes: kernels take neighbours
// only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// Rows i to i + rows and columns j to j + cols, in a view's own terms.
struct Rect {
    std::size_t i, j, rows, cols;
};

// Where the element lies that has this index in C order.
inline char* element_at(const Array& array, std::size_t index) {
    char* p = array.data;
    for (int d = array.ndim - 1; d >= 0; --d) {
        const auto length = std::size_t(array.shape[d]);
        p += std::ptrdiff_t(index % length) * array.strides[d];
        index /= length;
    }
    return p;
}

// The index in C order of the first element for which test(it) holds, or -1.
template <class Test>
std::ptrdiff_t first_of(const Array& array, const Test& test) {
    for (std::size_t k = 0, size = size_of(array); k < size; ++k)
        if (test(Block{element_at(array, k), 0, 1, 1, array.format, array.low}))
            return std::ptrdiff_t(k);
    return -1;
}

// A matrix as `outer` runs of `inner` elements; strides are in bytes. `swapped`: the runs are the
// matrix's columns, as in Fortran order.
struct MatrixView {
    char* data;
    Format format;
    std::size_t outer, inner;
    std::ptrdiff_t outer_stride, inner_stride;
    std::ptrdiff_t low;  // as in Array
    bool swapped;

    bool has_unit_runs() const {
        return inner == 1 || inner_stride == std::ptrdiff_t(item_size(format));
    }
    char* at(std::size_t i, std::size_t j) const {
        return data + std::ptrdiff_t(i) * outer_stride + std::ptrdiff_t(j) * inner_stride;
    }
};

// Bytes of n elements that are copied together; split ones in two planes.
inline std::size_t copied_size(Format format, std::size_t n) {
    return n * (format == Format::split ? 2 : 1) * item_size(format);
}

// A part of a matrix with unit runs, where it lies.
Block block_in_place(const MatrixView& view, const Rect& part);

// The place of a part's copy at `to`, without its elements; gather copies them, scatter copies
// back.
Block block_for_copy(const MatrixView& view, const Rect& part, char* to);
Block gather(const MatrixView& view, const Rect& part, char* to);
void scatter(const Block& from, const MatrixView& view, const Rect& part);

// A copy of a block at `to` whose rows begin with `pad` zeros, and back. It has room for that.
Block padded_block(const Block& block, std::size_t pad, char* to);
void put_padded_back(const Block& padded, std::size_t pad, const Block& block);

// The copy at `to` of a block of one row, unless it is that already.
Block copied_run(const Block& run, char* to);

// The matrices of an array over two of its axes, one for each index of the others. An array without
// data has matrices of no format.
class MatrixBatch {
public:
    // All views are `swapped`, or none is.
    MatrixBatch(const Array& array, int row_axis, int col_axis, bool swapped);

    // The runs go along the axis with the smaller stride.
    static MatrixBatch along_memory(const Array& array, int row_axis, int col_axis);

    bool exists() const { return first_.data != nullptr; }
    std::size_t size() const { return size_; }
    bool swapped() const { return first_.swapped; }
    Format format() const { return first_.format; }
    std::size_t outer() const { return first_.outer; }
    std::size_t inner() const { return first_.inner; }
    bool has_unit_runs() const { return !exists() || first_.has_unit_runs(); }

    // Matrices first to first + n as one run of (n, rows, cols): where they lie, if that is what
    // they are there, or else their copy at `to`, which scatter_run copies back.
    Block run(std::size_t first, std::size_t n, char* to) const;
    void scatter_run(const Block& from, std::size_t first, std::size_t n) const;

    // How many consecutive matrices lie between the neighbouring elements of one: a cache line
    // has parts of them all.
    std::size_t interleaved() const;

    // Matrices are counted in C order of the other axes.
    MatrixView operator[](std::size_t m) const {
        MatrixView view = first_;
        if (m > 0) view.data += offset_of(m);
        return view;
    }

private:
    bool is_run() const;
    bool walks_matrices_inside() const { return std::abs(stride_) < std::abs(first_.inner_stride); }
    template <class Copy>
    void for_rows(std::size_t first, std::size_t n, const Copy& copy) const;
    std::ptrdiff_t offset_of(std::size_t m) const {
        return is_uniform_ ? std::ptrdiff_t(m) * stride_ : offset_of_any(m);
    }
    std::ptrdiff_t offset_of_any(std::size_t m) const;

    const Array& array_;
    int row_axis_, col_axis_;
    std::size_t size_ = 1;
    std::ptrdiff_t stride_ = 0;  // from each matrix to the next, if it is_uniform_
    std::size_t series_ = 1;     // so many are that far apart, even if it is not
    bool is_uniform_ = true;
    MatrixView first_;
};

// The numbers, as in Rounding, that a run of n elements takes up.
inline constexpr std::size_t kNumbered = 64;  // elements that one draw of random bits is for
inline std::uint64_t numbered(std::size_t n) {
    return (std::uint64_t(n) + kNumbered - 1) / kNumbered * kNumbered;
}

// The elements of an array of any number of axes in an order shared by several arrays of the same
// shape: axes sorted by the first array's strides, or in C order if that is asked for, neighbours
// merged where all arrays allow it. Arrays without data take no part.
class ElementOrder {
public:
    static constexpr int kMaxArrays = 5;
    static constexpr int kMaxAxes = 64;  // NumPy's own limit

    ElementOrder(std::initializer_list<const Array*> arrays, bool in_c_order = false);

    std::size_t size() const { return size_; }

    // Elements k to k + n of array `a`: where they lie if they are neighbours there, or else their
    // copy at `to`, which scatter copies back.
    Block run(int a, std::size_t k, std::size_t n, char* to) const;
    void scatter(const Block& from, int a, std::size_t k, std::size_t n) const;

    char* at(int a, std::size_t k) const;

private:
    bool is_run(int a, std::size_t k, std::size_t n) const;
    void gather_items(int a, std::size_t k, std::size_t n, char* to, std::ptrdiff_t offset) const;
    void scatter_items(const char* from, int a, std::size_t k, std::size_t n,
                       std::ptrdiff_t offset) const;
    template <class Visit>
    void visit_runs(int a, std::size_t k, std::size_t n, Visit visit) const;

    std::size_t size_ = 1;
    int n_axes_ = 0;
    std::size_t shape_[kMaxAxes];
    std::ptrdiff_t stride_[kMaxArrays][kMaxAxes];
    char* data_[kMaxArrays];
    Format format_[kMaxArrays];
    std::ptrdiff_t low_[kMaxArrays];
};

}  // namespace adafactor
