#include "engine/layout.hpp"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "dispatch/isa.hpp"

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

// Walks the array, not the tile, in the order of its memory: the tile is in cache.
bool walks_rows_inside(const MatrixView& view) {
    return std::abs(view.outer_stride) < std::abs(view.inner_stride);
}

// The items of a part of a matrix, or those `offset` bytes from them, into consecutive memory.
void gather_items(const MatrixView& from, const Rect& part, std::ptrdiff_t offset, void* to) {
    const auto item = std::ptrdiff_t(item_size(from.format));
    copy_tile(from.at(part.i, part.j) + offset, from.outer_stride, from.inner_stride,
              static_cast<char*>(to), std::ptrdiff_t(part.cols) * item, item, part.rows, part.cols,
              item_size(from.format), walks_rows_inside(from));
}

void scatter_items(const void* from, const MatrixView& to, const Rect& part,
                   std::ptrdiff_t offset) {
    const auto item = std::ptrdiff_t(item_size(to.format));
    copy_tile(static_cast<const char*>(from), std::ptrdiff_t(part.cols) * item, item,
              to.at(part.i, part.j) + offset, to.outer_stride, to.inner_stride, part.rows,
              part.cols, item_size(to.format), walks_rows_inside(to));
}

// A block of halves in memory, or the one `low` bytes from it.
Block<Half> halves_at(const MatrixView& view, const Rect& part, std::ptrdiff_t low = 0) {
    return {reinterpret_cast<Half*>(view.at(part.i, part.j) + low), view.outer_stride, part.rows,
            part.cols};
}

template <class T>
Block<T> packed(T* data, std::size_t rows, std::size_t cols) {
    return {data, std::ptrdiff_t(cols * sizeof(T)), rows, cols};
}

template <class T>
Block<const T> read_only(const Block<T>& block) {
    return {block.data, block.stride, block.rows, block.cols};
}

// `low` has no data where `high` is all there is of a number.
void widen(Format format, const Block<Half>& high, const Block<Half>& low, const Block<float>& to) {
    if (low.data == nullptr)
        running_half_kernels(format).widen(read_only(high), to);
    else
        running_kernels().join(read_only(high), read_only(low), to);
}

void narrow(Format format, const Block<const float>& from, const Block<Half>& high,
            const Block<Half>& low, const Rounding& rounding) {
    if (low.data == nullptr)
        running_half_kernels(format).narrow(from, high, rounding);
    else
        running_kernels().split(from, high, low);
}

// Calls body(part) for small parts, which halves that are no neighbours are copied by.
constexpr std::size_t kHalfRows = 16, kHalfCols = 128;

template <class Body>
void for_half_parts(const Rect& whole, const Body& body) {
    for (std::size_t i = 0; i < whole.rows; i += kHalfRows)
        for (std::size_t j = 0; j < whole.cols; j += kHalfCols)
            body(Rect{i, j, std::min(kHalfRows, whole.rows - i),
                      std::min(kHalfCols, whole.cols - j)});
}

void gather_halves(const MatrixView& from, const Rect& part, float* to) {
    const Block<float> out = packed(to, part.rows, part.cols);
    if (from.has_unit_runs()) {
        const auto low = from.low != 0 ? halves_at(from, part, from.low) : Block<Half>{};
        return widen(from.format, halves_at(from, part), low, out);
    }
    for_half_parts(part, [&](const Rect& p) {
        Half high[kHalfRows * kHalfCols], low[kHalfRows * kHalfCols];
        const Rect there{part.i + p.i, part.j + p.j, p.rows, p.cols};
        gather_items(from, there, 0, high);
        if (from.low != 0) gather_items(from, there, from.low, low);
        widen(from.format, packed(high, p.rows, p.cols),
              from.low != 0 ? packed(low, p.rows, p.cols) : Block<Half>{},
              {to + p.i * part.cols + p.j, out.stride, p.rows, p.cols});
    });
}

}  // namespace

void narrow(const Block<const float>& from, const MatrixView& to, const Rect& part,
            const Rounding& rounding) {
    if (to.has_unit_runs()) {
        const auto low = to.low != 0 ? halves_at(to, part, to.low) : Block<Half>{};
        return narrow(to.format, from, halves_at(to, part), low, rounding);
    }
    for_half_parts(part, [&](const Rect& p) {
        Half high[kHalfRows * kHalfCols], low[kHalfRows * kHalfCols];
        const char* const data =
            reinterpret_cast<const char*>(from.data + p.j) + std::ptrdiff_t(p.i) * from.stride;
        Rounding here = rounding;
        here.first += p.i * rounding.row_step + p.j;
        narrow(to.format, {reinterpret_cast<const float*>(data), from.stride, p.rows, p.cols},
               packed(high, p.rows, p.cols),
               to.low != 0 ? packed(low, p.rows, p.cols) : Block<Half>{}, here);
        const Rect there{part.i + p.i, part.j + p.j, p.rows, p.cols};
        scatter_items(high, to, there, 0);
        if (to.low != 0) scatter_items(low, to, there, to.low);
    });
}

MatrixBatch::MatrixBatch(const Array& array, int row_axis, int col_axis, bool swapped)
    : array_(array), row_axis_(row_axis), col_axis_(col_axis) {
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

template <std::size_t item>
void MatrixBatch::gather_items(std::size_t first, std::size_t n, char* to,
                               std::ptrdiff_t offset) const {
    if (is_run<item>(n)) {
        std::memcpy(to, first_.data + offset_of(first) + offset, kLanesOfSmall * item);
        return;
    }
    for_lanes(first, n,
              [=](const char* p, std::size_t k) { std::memcpy(to + k * item, p + offset, item); });
}

template <std::size_t item>
void MatrixBatch::scatter_items(const char* from, std::size_t first, std::size_t n,
                                std::ptrdiff_t offset) const {
    if (is_run<item>(n)) {
        std::memcpy(first_.data + offset_of(first) + offset, from, kLanesOfSmall * item);
        return;
    }
    for_lanes(first, n,
              [=](char* p, std::size_t k) { std::memcpy(p + offset, from + k * item, item); });
}

void MatrixBatch::gather(std::size_t first, std::size_t n, void* to) const {
    auto* const t = static_cast<char*>(to);
    switch (item_size(first_.format)) {
        case 8:
            return gather_items<8>(first, n, t);
        case 4:
            return gather_items<4>(first, n, t);
    }
    Half high[kSmallElements * kLanesOfSmall], low[kSmallElements * kLanesOfSmall];
    const std::size_t size = first_.outer * first_.inner * kLanesOfSmall;
    gather_items<2>(first, n, reinterpret_cast<char*>(high));
    if (first_.low != 0) gather_items<2>(first, n, reinterpret_cast<char*>(low), first_.low);
    widen(first_.format, packed(high, 1, size),
          first_.low != 0 ? packed(low, 1, size) : Block<Half>{},
          packed(static_cast<float*>(to), 1, size));
}

void MatrixBatch::scatter(const void* from, std::size_t first, std::size_t n,
                          const Rounding& rounding) const {
    const auto* const f = static_cast<const char*>(from);
    switch (item_size(first_.format)) {
        case 8:
            return scatter_items<8>(f, first, n);
        case 4:
            return scatter_items<4>(f, first, n);
    }
    Half high[kSmallElements * kLanesOfSmall], low[kSmallElements * kLanesOfSmall];
    const std::size_t size = first_.outer * first_.inner * kLanesOfSmall;
    narrow(first_.format, packed(static_cast<const float*>(from), 1, size), packed(high, 1, size),
           first_.low != 0 ? packed(low, 1, size) : Block<Half>{}, rounding);
    scatter_items<2>(reinterpret_cast<const char*>(high), first, n);
    if (first_.low != 0) scatter_items<2>(reinterpret_cast<const char*>(low), first, n, first_.low);
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
    if (is_half(from.format)) return gather_halves(from, part, static_cast<float*>(to));
    gather_items(from, part, 0, to);
}

void scatter(const void* from, const MatrixView& to, const Rect& part, const Rounding& rounding) {
    if (is_half(to.format))
        return narrow(packed(static_cast<const float*>(from), part.rows, part.cols), to, part,
                      rounding);
    scatter_items(from, to, part, 0);
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
        low_[a] = array->low;
        format_[a++] = array->format;
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

bool ElementOrder::is_run(int a, std::size_t k, std::size_t n, char*& start) const {
    const std::size_t inner = shape_[n_axes_ - 1];
    if (stride_[a][n_axes_ - 1] != std::ptrdiff_t(item_size(format_[a]))) return false;
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

bool ElementOrder::is_direct(int a, std::size_t k, std::size_t n, char*& start) const {
    return !is_half(format_[a]) && is_run(a, k, n, start);
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

// The halves of a run, and of its lower halves: those in memory, or places for copies.
struct ElementOrder::HalfRun {
    Half high_place[kMaxRun], low_place[kMaxRun];
    Block<Half> high, low{};
    bool is_copied;

    HalfRun(const ElementOrder& order, int a, std::size_t k, std::size_t n) {
        char* start;
        is_copied = !order.is_run(a, k, n, start);
        high = packed(is_copied ? high_place : reinterpret_cast<Half*>(start), 1, n);
        if (order.low_[a] != 0)
            low = packed(is_copied ? low_place : reinterpret_cast<Half*>(start + order.low_[a]), 1,
                         n);
    }
};

void ElementOrder::gather(int a, std::size_t k, std::size_t n, void* to) const {
    if (!is_half(format_[a])) return gather_items(a, k, n, static_cast<char*>(to), 0);
    HalfRun run(*this, a, k, n);
    if (run.is_copied) {
        gather_items(a, k, n, reinterpret_cast<char*>(run.high_place), 0);
        if (low_[a] != 0) gather_items(a, k, n, reinterpret_cast<char*>(run.low_place), low_[a]);
    }
    widen(format_[a], run.high, run.low, packed(static_cast<float*>(to), 1, n));
}

void ElementOrder::scatter(const void* from, int a, std::size_t k, std::size_t n,
                           const Rounding& rounding) const {
    if (!is_half(format_[a])) return scatter_items(static_cast<const char*>(from), a, k, n, 0);
    HalfRun run(*this, a, k, n);
    narrow(format_[a], packed(static_cast<const float*>(from), 1, n), run.high, run.low, rounding);
    if (!run.is_copied) return;
    scatter_items(reinterpret_cast<const char*>(run.high_place), a, k, n, 0);
    if (low_[a] != 0) scatter_items(reinterpret_cast<const char*>(run.low_place), a, k, n, low_[a]);
}

}  // namespace adafactor
