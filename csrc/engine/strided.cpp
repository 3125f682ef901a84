#include "engine/strided.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

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
    (item == 2   ? copy_items<2>
     : item == 4 ? copy_items<4>
                 : copy_items<8>)(from, from_row, from_col, to, to_row, to_col, rows, cols);
}

// Walks the array, not the copy, in the order of its memory: the copy is in cache.
bool walks_rows_inside(const MatrixView& view) {
    return std::abs(view.outer_stride) < std::abs(view.inner_stride);
}

// Calls copy(offset in the array, offset in the copy of n elements) for each plane of a format.
template <class Copy>
void for_planes(Format format, std::ptrdiff_t low, std::size_t n, const Copy& copy) {
    copy(std::ptrdiff_t(0), std::ptrdiff_t(0));
    if (format == Format::split) copy(low, std::ptrdiff_t(n * item_size(format)));
}

// One run at `to` of n elements that are copied.
Block run_for_copy(Format format, std::size_t n, char* to) {
    return {to, 0, 1, n, format, std::ptrdiff_t(n * item_size(format))};
}

}  // namespace

Block block_in_place(const MatrixView& view, const Rect& part) {
    return {
        view.at(part.i, part.j), view.outer_stride, part.rows, part.cols, view.format, view.low};
}

Block block_for_copy(const MatrixView& view, const Rect& part, char* to) {
    const std::size_t item = item_size(view.format);
    return {to,          std::ptrdiff_t(part.cols * item),
            part.rows,   part.cols,
            view.format, std::ptrdiff_t(part.rows * part.cols * item)};
}

Block gather(const MatrixView& view, const Rect& part, char* to) {
    const Block block = block_for_copy(view, part, to);
    const std::size_t item = item_size(view.format);
    for_planes(view.format, view.low, part.rows * part.cols,
               [&](std::ptrdiff_t from, std::ptrdiff_t into) {
                   copy_tile(view.at(part.i, part.j) + from, view.outer_stride, view.inner_stride,
                             to + into, block.stride, std::ptrdiff_t(item), part.rows, part.cols,
                             item, walks_rows_inside(view));
               });
    return block;
}

void scatter(const Block& from, const MatrixView& view, const Rect& part) {
    const std::size_t item = item_size(view.format);
    for_planes(view.format, view.low, part.rows * part.cols,
               [&](std::ptrdiff_t to, std::ptrdiff_t out_of) {
                   copy_tile(from.data + out_of, from.stride, std::ptrdiff_t(item),
                             view.at(part.i, part.j) + to, view.outer_stride, view.inner_stride,
                             part.rows, part.cols, item, walks_rows_inside(view));
               });
}

MatrixBatch::MatrixBatch(const Array& array, int row_axis, int col_axis, bool swapped)
    : array_(array), row_axis_(row_axis), col_axis_(col_axis), first_{} {
    if (array.data == nullptr) return;
    const int outer = swapped ? col_axis : row_axis, inner = swapped ? row_axis : col_axis;
    first_ = {array.data,
              array.format,
              std::size_t(array.shape[outer]),
              std::size_t(array.shape[inner]),
              array.strides[outer],
              array.strides[inner],
              array.low,
              swapped};
    for (int d = array.ndim - 1; d >= 0; --d) {
        if (d == row_axis || d == col_axis || array.shape[d] == 1) continue;
        if (size_ == 1) {
            stride_ = array.strides[d];
            series_ = std::size_t(array.shape[d]);
        }
        is_uniform_ = is_uniform_ && array.strides[d] == stride_ * std::ptrdiff_t(size_);
        size_ *= std::size_t(array.shape[d]);
    }
}

MatrixBatch MatrixBatch::along_memory(const Array& array, int row_axis, int col_axis) {
    const auto rows = array.shape[row_axis], cols = array.shape[col_axis];
    const auto row_stride = std::abs(array.strides[row_axis]);
    const auto col_stride = std::abs(array.strides[col_axis]);
    // The stride of an axis of length one says nothing: runs of one element are the slowest.
    const bool swapped = rows != 1 && (cols == 1 || row_stride < col_stride);
    return {array, row_axis, col_axis, swapped};
}

// Whether all matrices lie one behind the other, in C order.
bool MatrixBatch::is_run() const {
    const auto item = std::ptrdiff_t(item_size(first_.format));
    const auto row = std::ptrdiff_t(first_.inner) * item;
    return first_.has_unit_runs() && (first_.outer == 1 || first_.outer_stride == row) &&
           (size_ == 1 || (is_uniform_ && stride_ == std::ptrdiff_t(first_.outer) * row));
}

// Calls copy(place of a row of the first matrix, its number in a run of them all, stride from each
// matrix to the next, how many) for series of matrices that are equally far apart, and their rows.
template <class Copy>
void MatrixBatch::for_rows(std::size_t first, std::size_t n, const Copy& copy) const {
    const std::size_t length = is_uniform_ ? size_ : series_;
    for (std::size_t done = 0; done < n;) {
        const std::size_t some = std::min(length - (first + done) % length, n - done);
        char* const place = first_.data + offset_of(first + done);
        for (std::size_t i = 0; i < first_.outer; ++i)
            copy(place + std::ptrdiff_t(i) * first_.outer_stride, done * first_.outer + i, stride_,
                 some);
        done += some;
    }
}

Block padded_block(const Block& block, std::size_t pad, char* to) {
    if (block.format == Format::none) return block;
    const std::size_t item = item_size(block.format), cols = block.cols + pad;
    const std::size_t plane = block.rows * cols * item;
    Block padded = block;
    padded.data = to;
    padded.stride = std::ptrdiff_t(cols * item);
    padded.cols = cols;
    padded.low = block.format == Format::split ? std::ptrdiff_t(plane) : 0;
    std::memset(to, 0, plane * (block.format == Format::split ? 2 : 1));
    const auto copy = [&](const char* from, char* into) {
        for (std::size_t i = 0; i < block.rows; ++i)
            std::memcpy(into + i * cols * item + pad * item,
                        from + std::ptrdiff_t(i) * block.stride, block.cols * item);
    };
    copy(block.data, to);
    if (block.format == Format::split) copy(block.data + block.low, to + plane);
    return padded;
}

void put_padded_back(const Block& padded, std::size_t pad, const Block& block) {
    if (block.format == Format::none) return;
    const std::size_t item = item_size(block.format);
    const auto copy = [&](const char* from, char* into) {
        for (std::size_t i = 0; i < block.rows; ++i)
            std::memcpy(into + std::ptrdiff_t(i) * block.stride,
                        from + std::ptrdiff_t(i) * padded.stride + pad * item, block.cols * item);
    };
    copy(padded.data, block.data);
    if (block.format == Format::split) copy(padded.data + padded.low, block.data + block.low);
}

Block copied_run(const Block& run, char* to) {
    if (run.data == to || run.format == Format::none) return run;
    const std::size_t bytes = run.cols * item_size(run.format);
    Block copy = run;
    copy.data = to;
    std::memcpy(to, run.data, bytes);
    if (run.format == Format::split) {
        std::memcpy(to + bytes, run.data + run.low, bytes);
        copy.low = std::ptrdiff_t(bytes);
    }
    return copy;
}

Block MatrixBatch::run(std::size_t first, std::size_t n, char* to) const {
    if (!exists()) return {};
    const std::size_t size = first_.outer * first_.inner;
    if (is_run())
        return {first_.data + offset_of(first), 0, 1, n * size, first_.format, first_.low};
    const Block block = run_for_copy(first_.format, n * size, to);
    const auto item = std::ptrdiff_t(item_size(first_.format));
    const auto row_size = std::ptrdiff_t(first_.inner) * item;
    for_planes(
        first_.format, first_.low, block.cols, [&](std::ptrdiff_t from, std::ptrdiff_t into) {
            for_rows(first, n,
                     [&](const char* row, std::size_t k, std::ptrdiff_t stride, std::size_t some) {
                         copy_tile(row + from, stride, first_.inner_stride,
                                   to + into + std::ptrdiff_t(k) * row_size,
                                   std::ptrdiff_t(size) * item, item, some, first_.inner,
                                   std::size_t(item), walks_matrices_inside());
                     });
        });
    return block;
}

void MatrixBatch::scatter_run(const Block& from, std::size_t first, std::size_t n) const {
    const std::size_t size = first_.outer * first_.inner;
    const auto item = std::ptrdiff_t(item_size(first_.format));
    const auto row_size = std::ptrdiff_t(first_.inner) * item;
    for_planes(first_.format, first_.low, from.cols, [&](std::ptrdiff_t to, std::ptrdiff_t out_of) {
        for_rows(first, n, [&](char* row, std::size_t k, std::ptrdiff_t stride, std::size_t some) {
            copy_tile(from.data + out_of + std::ptrdiff_t(k) * row_size,
                      std::ptrdiff_t(size) * item, item, row + to, stride, first_.inner_stride,
                      some, first_.inner, std::size_t(item), walks_matrices_inside());
        });
    });
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

ElementOrder::ElementOrder(std::initializer_list<const Array*> arrays, bool in_c_order) {
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
        return in_c_order || step_a == step_b ? a < b : step_a > step_b;
    });

    int a = 0;
    for (const Array* array : arrays) {
        data_[a] = array->data;
        low_[a] = array->low;
        format_[a++] = array->format;
    }
    const int n_arrays = a;
    const auto stride_of = [&](const Array& array, int d) {
        return (array.data != nullptr ? array : first).strides[d];
    };
    for (int k = 0; k < n_axes; ++k) {
        const auto length = std::size_t(first.shape[axis[k]]);
        bool merges = n_axes_ > 0;
        a = 0;
        for (const Array* array : arrays) {
            const std::ptrdiff_t stride = stride_of(*array, axis[k]);
            merges = merges && stride_[a++][n_axes_ - 1] == stride * std::ptrdiff_t(length);
        }
        const int into = merges ? n_axes_ - 1 : n_axes_++;
        shape_[into] = merges ? shape_[into] * length : length;
        a = 0;
        for (const Array* array : arrays) stride_[a++][into] = stride_of(*array, axis[k]);
    }
    if (n_axes_ == 0) {  // a single element
        shape_[n_axes_++] = 1;
        for (a = 0; a < n_arrays; ++a) stride_[a][0] = std::ptrdiff_t(item_size(format_[a]));
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

bool ElementOrder::is_run(int a, std::size_t k, std::size_t n) const {
    const std::size_t inner = shape_[n_axes_ - 1];
    return stride_[a][n_axes_ - 1] == std::ptrdiff_t(item_size(format_[a])) &&
           (n_axes_ == 1 || k % inner + n <= inner);
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

void ElementOrder::gather_items(int a, std::size_t k, std::size_t n, char* to,
                                std::ptrdiff_t offset) const {
    const std::size_t item = item_size(format_[a]);
    visit_runs(a, k, n, [&](const char* run, std::size_t length) {
        copy_tile(run + offset, 0, stride_[a][n_axes_ - 1], to, 0, std::ptrdiff_t(item), 1, length,
                  item, false);
        to += length * item;
    });
}

void ElementOrder::scatter_items(const char* from, int a, std::size_t k, std::size_t n,
                                 std::ptrdiff_t offset) const {
    const std::size_t item = item_size(format_[a]);
    visit_runs(a, k, n, [&](char* run, std::size_t length) {
        copy_tile(from, 0, std::ptrdiff_t(item), run + offset, 0, stride_[a][n_axes_ - 1], 1,
                  length, item, false);
        from += length * item;
    });
}

Block ElementOrder::run(int a, std::size_t k, std::size_t n, char* to) const {
    if (data_[a] == nullptr) return {};
    if (is_run(a, k, n)) return {at(a, k), 0, 1, n, format_[a], low_[a]};
    for_planes(format_[a], low_[a], n, [&](std::ptrdiff_t from, std::ptrdiff_t into) {
        gather_items(a, k, n, to + into, from);
    });
    return run_for_copy(format_[a], n, to);
}

void ElementOrder::scatter(const Block& from, int a, std::size_t k, std::size_t n) const {
    for_planes(format_[a], low_[a], n, [&](std::ptrdiff_t to, std::ptrdiff_t out_of) {
        scatter_items(from.data + out_of, a, k, n, to);
    });
}

}  // namespace adafactor
