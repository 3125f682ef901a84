#include "layout.hpp"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernel/kernels.hpp"

namespace adafactor {
namespace {

// Copies rows x cols items between two strided places, the columns inside.
template <std::size_t item>
void copy_items(const char* from, std::ptrdiff_t from_row, std::ptrdiff_t from_col, char* to,
                std::ptrdiff_t to_row, std::ptrdiff_t to_col, std::size_t rows, std::size_t cols) {
    for (std::size_t i = 0; i < rows; ++i) {
        const char* f = from + std::ptrdiff_t(i) * from_row;
        char* t = to + std::ptrdiff_t(i) * to_row;
        for (std::size_t j = 0; j < cols; ++j, f += from_col, t += to_col) std::memcpy(t, f, item);
    }
}

void copy_tile(const char* from, std::ptrdiff_t from_row, std::ptrdiff_t from_col, char* to,
               std::ptrdiff_t to_row, std::ptrdiff_t to_col, std::size_t rows, std::size_t cols,
               std::size_t item, bool rows_inside) {
    if (rows_inside) {
        std::swap(from_row, from_col);
        std::swap(to_row, to_col);
        std::swap(rows, cols);
    }
    (item == 4 ? copy_items<4> : copy_items<8>)(from, from_row, from_col, to, to_row, to_col, rows,
                                                cols);
}

// Walks the array, not the tile, in the order of its memory: the tile is in cache.
bool walks_rows_inside(const MatrixView& view) {
    return std::abs(view.outer_stride) < std::abs(view.inner_stride);
}

}  // namespace

MatrixBatch::MatrixBatch(const Array& array, int row_axis, int col_axis, bool swapped)
    : array_(array), row_axis_(row_axis), col_axis_(col_axis) {
    const int outer = swapped ? col_axis : row_axis, inner = swapped ? row_axis : col_axis;
    first_ = {array.data,
              item_size(array.dtype),
              std::size_t(array.shape[outer]),
              std::size_t(array.shape[inner]),
              array.strides[outer],
              array.strides[inner],
              swapped};
    for (int d = array.ndim - 1; d >= 0; --d) {
        if (d == row_axis || d == col_axis || array.shape[d] == 1) continue;
        if (size_ == 1) stride_ = array.strides[d];
        is_uniform_ = is_uniform_ && array.strides[d] == stride_ * std::ptrdiff_t(size_);
        size_ *= std::size_t(array.shape[d]);
    }
}

// Calls copy(place in the array, number of the item in the lanes) for every element.
template <class Copy>
void MatrixBatch::for_lanes(std::size_t first, std::size_t n, const Copy& copy) const {
    char* matrix[kLanesOfSmall];
    for (std::size_t lane = 0; lane < kLanesOfSmall; ++lane)
        matrix[lane] = first_.data + offset_of(lane < n ? first + lane : first);
    for (std::size_t i = 0; i < first_.outer; ++i)
        for (std::size_t j = 0; j < first_.inner; ++j) {
            const std::ptrdiff_t offset =
                std::ptrdiff_t(i) * first_.outer_stride + std::ptrdiff_t(j) * first_.inner_stride;
            const std::size_t k = (i * first_.inner + j) * kLanesOfSmall;
            for (std::size_t lane = 0; lane < kLanesOfSmall; ++lane)
                copy(matrix[lane] + offset, k + lane);
        }
}

void MatrixBatch::gather(std::size_t first, std::size_t n, void* to) const {
    auto* const t = static_cast<char*>(to);
    if (first_.item == 4)
        for_lanes(first, n, [t](const char* p, std::size_t k) { std::memcpy(t + k * 4, p, 4); });
    else
        for_lanes(first, n, [t](const char* p, std::size_t k) { std::memcpy(t + k * 8, p, 8); });
}

void MatrixBatch::scatter(const void* from, std::size_t first, std::size_t n) const {
    const auto* const f = static_cast<const char*>(from);
    if (first_.item == 4)
        for_lanes(first, n, [f](char* p, std::size_t k) { std::memcpy(p, f + k * 4, 4); });
    else
        for_lanes(first, n, [f](char* p, std::size_t k) { std::memcpy(p, f + k * 8, 8); });
}

std::size_t MatrixBatch::interleaved() const {
    std::size_t n = 1;
    if (first_.inner == 1) return n;
    for (int d = array_.ndim - 1; d >= 0; --d) {
        if (d == row_axis_ || d == col_axis_ || array_.shape[d] == 1) continue;
        if (std::abs(array_.strides[d]) >= std::abs(first_.inner_stride)) break;
        n *= std::size_t(array_.shape[d]);
    }
    return n;
}

MatrixBatch MatrixBatch::along_memory(const Array& array, int row_axis, int col_axis) {
    const auto rows = array.shape[row_axis], cols = array.shape[col_axis];
    const auto row_stride = std::abs(array.strides[row_axis]);
    const auto col_stride = std::abs(array.strides[col_axis]);
    // The stride of an axis of length one says nothing: runs of one element are the slowest.
    const bool swapped = rows != 1 && (cols == 1 || row_stride < col_stride);
    return {array, row_axis, col_axis, swapped};
}

std::ptrdiff_t MatrixBatch::offset_of_any(std::size_t m) const {
    std::ptrdiff_t offset = 0;
    for (int d = array_.ndim - 1; d >= 0; --d) {
        if (d == row_axis_ || d == col_axis_) continue;
        const auto length = std::size_t(array_.shape[d]);
        offset += std::ptrdiff_t(m % length) * array_.strides[d];
        m /= length;
    }
    return offset;
}

void gather(const MatrixView& from, const Rect& part, void* to) {
    const auto item = std::ptrdiff_t(from.item);
    copy_tile(from.at(part.i, part.j), from.outer_stride, from.inner_stride, static_cast<char*>(to),
              std::ptrdiff_t(part.cols) * item, item, part.rows, part.cols, from.item,
              walks_rows_inside(from));
}

void scatter(const void* from, const MatrixView& to, const Rect& part) {
    const auto item = std::ptrdiff_t(to.item);
    copy_tile(static_cast<const char*>(from), std::ptrdiff_t(part.cols) * item, item,
              to.at(part.i, part.j), to.outer_stride, to.inner_stride, part.rows, part.cols,
              to.item, walks_rows_inside(to));
}

ElementOrder::ElementOrder(std::initializer_list<const Array*> arrays) {
    const Array& first = **arrays.begin();
    int axis[kMaxAxes], n_axes = 0;
    for (int d = 0; d < first.ndim; ++d) {
        size_ *= std::size_t(first.shape[d]);
        if (first.shape[d] != 1) axis[n_axes++] = d;
    }
    // Not stable_sort, which allocates.
    std::sort(axis, axis + n_axes, [&](int a, int b) {
        const std::ptrdiff_t step_a = std::abs(first.strides[a]),
                             step_b = std::abs(first.strides[b]);
        return step_a != step_b ? step_a > step_b : a < b;
    });

    int a = 0;
    for (const Array* array : arrays) {
        data_[a] = array->data;
        item_[a++] = item_size(array->dtype);
    }
    const int n_arrays = a;
    for (int k = 0; k < n_axes; ++k) {
        const auto length = std::size_t(first.shape[axis[k]]);
        bool merges = n_axes_ > 0;
        a = 0;
        for (const Array* array : arrays) {
            const std::ptrdiff_t stride = array->strides[axis[k]];
            merges = merges && stride_[a++][n_axes_ - 1] == stride * std::ptrdiff_t(length);
        }
        const int into = merges ? n_axes_ - 1 : n_axes_++;
        shape_[into] = merges ? shape_[into] * length : length;
        a = 0;
        for (const Array* array : arrays) stride_[a++][into] = array->strides[axis[k]];
    }
    if (n_axes_ == 0) {  // a single element
        shape_[n_axes_++] = 1;
        for (a = 0; a < n_arrays; ++a) stride_[a][0] = std::ptrdiff_t(item_[a]);
    }
}

char* ElementOrder::at(int a, std::size_t k) const {
    char* p = data_[a];
    for (int d = n_axes_ - 1; d > 0; --d) {
        p += std::ptrdiff_t(k % shape_[d]) * stride_[a][d];
        k /= shape_[d];
    }
    return p + std::ptrdiff_t(k) * stride_[a][0];
}

bool ElementOrder::is_run(int a, std::size_t k, std::size_t n, char*& start) const {
    const std::size_t inner = shape_[n_axes_ - 1];
    if (stride_[a][n_axes_ - 1] != std::ptrdiff_t(item_[a])) return false;
    if (n_axes_ > 1 && k % inner + n > inner) return false;
    start = at(a, k);
    return true;
}

template <class Visit>
void ElementOrder::visit_runs(int a, std::size_t k, std::size_t n, Visit visit) const {
    const std::size_t inner = shape_[n_axes_ - 1], end = k + n;
    while (k < end) {
        const std::size_t length = std::min(inner - k % inner, end - k);
        visit(at(a, k), length);
        k += length;
    }
}

void ElementOrder::gather(int a, std::size_t k, std::size_t n, void* to) const {
    auto* t = static_cast<char*>(to);
    const auto item = std::ptrdiff_t(item_[a]);
    visit_runs(a, k, n, [&](const char* run, std::size_t length) {
        copy_tile(run, 0, stride_[a][n_axes_ - 1], t, 0, item, 1, length, item_[a], false);
        t += std::ptrdiff_t(length) * item;
    });
}

void ElementOrder::scatter(const void* from, int a, std::size_t k, std::size_t n) const {
    auto* f = static_cast<const char*>(from);
    const auto item = std::ptrdiff_t(item_[a]);
    visit_runs(a, k, n, [&](char* run, std::size_t length) {
        copy_tile(f, 0, item, run, 0, stride_[a][n_axes_ - 1], 1, length, item_[a], false);
        f += std::ptrdiff_t(length) * item;
    });
}

}  // namespace adafactor
