// Strides and formats: how the elements of an array lie in memory, and copies of small tiles of
// them in the types that kernels take, float for halves.
#pragma once

#include <algorithm>
#include <cstddef>

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// Rows i to i + rows and columns j to j + cols, in a view's own terms.
struct Rect {
    std::size_t i, j, rows, cols;
};

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
    // Kernels read and write runs of neighbouring elements of their own types; all else goes
    // through a tile.
    bool is_direct() const { return has_unit_runs() && !is_half(format); }
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
    bool is_direct() const { return first_.is_direct(); }

    // Copies the elements of n <= kLanesOfSmall matrices, each of at most kSmallElements, to (rows,
    // cols, kLanesOfSmall), and back. Lanes left over are the first matrix again.
    void gather(std::size_t first, std::size_t n, void* to) const;
    void scatter(const void* from, std::size_t first, std::size_t n,
                 const Rounding& rounding = {}) const;

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
    template <std::size_t item>
    void gather_items(std::size_t first, std::size_t n, char* to, std::ptrdiff_t offset = 0) const;
    template <std::size_t item>
    void scatter_items(const char* from, std::size_t first, std::size_t n,
                       std::ptrdiff_t offset = 0) const;
    template <class Copy>
    void for_lanes(std::size_t first, std::size_t n, const Copy& copy) const;

    // Whether so many matrices are one item each, one beside the other.
    template <std::size_t item>
    bool is_run(std::size_t n) const {
        return n == kLanesOfSmall && first_.outer * first_.inner == 1 && is_uniform_ &&
               stride_ == std::ptrdiff_t(item);
    }
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
void scatter(const void* from, const MatrixView& to, const Rect& part,
             const Rounding& rounding = {});

// Rounds a block into a part of a matrix of halves.
void narrow(const Block<const float>& from, const MatrixView& to, const Rect& part,
            const Rounding& rounding);

// The numbers, as in Rounding, that a run of n elements takes up.
inline std::uint64_t numbered(std::size_t n) { return (std::uint64_t(n) + 63) / 64 * 64; }

// The elements of an array of any number of axes in an order shared by several arrays of the same
// shape: axes sorted by the first array's strides, neighbours merged where all arrays allow it.
class ElementOrder {
public:
    static constexpr int kMaxArrays = 5;
    static constexpr std::size_t kMaxRun = kChunk;  // elements that are copied at a time
    static constexpr int kMaxAxes = 64;             // NumPy's own limit

    ElementOrder(std::initializer_list<const Array*> arrays);

    std::size_t size() const { return size_; }

    // Whether kernels can take elements k to k + n of array `a` as they lie: neighbours in memory,
    // and no halves. If so `start` is theirs.
    bool is_direct(int a, std::size_t k, std::size_t n, char*& start) const;
    void gather(int a, std::size_t k, std::size_t n, void* to) const;
    void scatter(const void* from, int a, std::size_t k, std::size_t n,
                 const Rounding& rounding = {}) const;

private:
    struct HalfRun;

    bool is_run(int a, std::size_t k, std::size_t n, char*& start) const;
    void gather_items(int a, std::size_t k, std::size_t n, char* to, std::ptrdiff_t offset) const;
    void scatter_items(const char* from, int a, std::size_t k, std::size_t n,
                       std::ptrdiff_t offset) const;
    template <class Visit>
    void visit_runs(int a, std::size_t k, std::size_t n, Visit visit) const;
    char* at(int a, std::size_t k) const;

    std::size_t size_ = 1;
    int n_axes_ = 0;
    std::size_t shape_[kMaxAxes];
    std::ptrdiff_t stride_[kMaxArrays][kMaxAxes];
    char* data_[kMaxArrays];
    Format format_[kMaxArrays];
    std::ptrdiff_t low_[kMaxArrays];
};

}  // namespace adafactor
