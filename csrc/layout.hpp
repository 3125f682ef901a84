// Strides: how the elements of an array lie in memory, and copies of small tiles of them.
#pragma once

#include <algorithm>
#include <cstddef>

#include "adafactor.hpp"

namespace adafactor {

inline std::size_t item_size(DType dtype) { return dtype == DType::float32 ? 4 : 8; }

// Rows i to i + rows and columns j to j + cols, in a view's own terms.
struct Rect {
    std::size_t i, j, rows, cols;
};

// A matrix as `outer` runs of `inner` elements; strides are in bytes. `swapped`: the runs are the
// matrix's columns, as in Fortran order.
struct MatrixView {
    char* data;
    std::size_t item;
    std::size_t outer, inner;
    std::ptrdiff_t outer_stride, inner_stride;
    bool swapped;

    // Kernels read and write runs of neighbouring elements; others go through a tile.
    bool has_unit_runs() const { return inner == 1 || inner_stride == std::ptrdiff_t(item); }
    char* at(std::size_t i, std::size_t j) const {
        return data + std::ptrdiff_t(i) * outer_stride + std::ptrdiff_t(j) * inner_stride;
    }
};

// The matrices of an array over two of its axes, one for each index of the others.
class MatrixBatch {
public:
    // Of views that are all `swapped`, or not.
    MatrixBatch(const Array& array, int row_axis, int col_axis, bool swapped);

    // With runs along the axis with the smaller stride.
    static MatrixBatch along_memory(const Array& array, int row_axis, int col_axis);

    std::size_t size() const { return size_; }
    bool swapped() const { return first_.swapped; }
    bool has_unit_runs() const { return first_.has_unit_runs(); }

    // Copies the elements of n <= kLanesOfSmall matrices to (rows, cols, kLanesOfSmall), and back.
    // Lanes left over are the first matrix again.
    void gather(std::size_t first, std::size_t n, void* to) const;
    void scatter(const void* from, std::size_t first, std::size_t n) const;

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
    template <class Copy>
    void for_lanes(std::size_t first, std::size_t n, const Copy& copy) const;

    std::ptrdiff_t offset_of(std::size_t m) const {
        return is_uniform_ ? std::ptrdiff_t(m) * stride_ : offset_of_any(m);
    }
    std::ptrdiff_t offset_of_any(std::size_t m) const;

    const Array& array_;
    int row_axis_, col_axis_;
    std::size_t size_ = 1;
    std::ptrdiff_t stride_ = 0;  // from each matrix to the next, if it is_uniform_
    bool is_uniform_ = true;
    MatrixView first_;
};

// Copies a part of a matrix into consecutive memory, and back.
void gather(const MatrixView& from, const Rect& part, void* to);
void scatter(const void* from, const MatrixView& to, const Rect& part);

// The elements of an array of any number of axes in an order shared by several arrays of the same
// shape: axes sorted by the first array's strides, neighbours merged where all arrays allow it.
class ElementOrder {
public:
    static constexpr int kMaxArrays = 4;
    static constexpr int kMaxAxes = 64;  // NumPy's own limit

    ElementOrder(std::initializer_list<const Array*> arrays);

    std::size_t size() const { return size_; }

    // Whether elements k to k + n of array `a` are neighbours in memory; if so `start` is theirs.
    bool is_run(int a, std::size_t k, std::size_t n, char*& start) const;
    void gather(int a, std::size_t k, std::size_t n, void* to) const;
    void scatter(const void* from, int a, std::size_t k, std::size_t n) const;

private:
    template <class Visit>
    void visit_runs(int a, std::size_t k, std::size_t n, Visit visit) const;
    char* at(int a, std::size_t k) const;

    std::size_t size_ = 1;
    int n_axes_ = 0;
    std::size_t shape_[kMaxAxes];
    std::ptrdiff_t stride_[kMaxArrays][kMaxAxes];
    char* data_[kMaxArrays];
    std::size_t item_[kMaxArrays];
};

}  // namespace adafactor
