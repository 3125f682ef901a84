#include "engine/part.hpp"

#include <algorithm>
#include <stdexcept>

namespace adafactor {

Layout layout_of(const std::string& name) {
    if (name == "rows") return Layout::rows;
    if (name == "cols") return Layout::cols;
    if (name == "batch" || name == "whole") return Layout::batch;
    if (name == "grid") return Layout::grid;
    if (name == "flat") return Layout::flat;
    if (name == "elements") return Layout::elements;
    throw std::invalid_argument("layout is '" + name +
                                "', must be 'rows', 'cols', 'batch', 'whole', 'grid', 'flat' or "
                                "'elements'");
}

double Part::n_elements() const {
    double n = 1;
    for (const std::ptrdiff_t length : shape) n *= double(length);
    return n;
}

std::size_t Part::n_groups() const {
    int last = 0;
    if (shared)
        for (const SharedLines& lines : *shared) last = std::max(last, lines.group);
    return std::size_t(last) + 1;
}

void Part::place(const std::vector<std::ptrdiff_t>& local, int row_axis, int col_axis) {
    boxes.clear();
    n_row_lines = n_col_lines = 0;
    const bool is_empty =
        std::any_of(local.begin(), local.end(), [](std::ptrdiff_t n) { return n == 0; });
    has_a_say = !is_empty || n_elements() == 0;
    if (is_range()) {
        if (local.size() != 1)
            throw std::invalid_argument("the local param of a flat range must have one axis");
        if (start[0] < 0 || double(start[0]) + double(local[0]) > n_elements())
            throw std::invalid_argument("a flat range must lie within its tensor");
    } else {
        if (start.size() != shape.size() || local.size() != shape.size())
            throw std::invalid_argument(
                "a part must have as many axes as its tensor, and begin at as many offsets");
        for (std::size_t d = 0; d < shape.size(); ++d)
            if (start[d] < 0 || local[d] < 0 || start[d] + local[d] > shape[d])
                throw std::invalid_argument("a box must lie within its tensor");
    }
    if ((row_axis < 0) != (layout == Layout::elements))
        throw std::invalid_argument(
            "the layout 'elements' is that of tensors that are not factored, and of no others");
    if (layout == Layout::elements) return;
    const auto n_axes = int(shape.size());
    if (std::min(row_axis, col_axis) < 0 || std::max(row_axis, col_axis) >= n_axes)
        throw std::invalid_argument("the factored axes must be axes of the whole tensor");
    n_rows = std::size_t(shape[std::size_t(row_axis)]);
    n_cols = std::size_t(shape[std::size_t(col_axis)]);
    n_matrices = 1;
    for (int d = 0; d < n_axes; ++d)
        if (d != row_axis && d != col_axis) n_matrices *= std::size_t(shape[std::size_t(d)]);
    if ((layout == Layout::flat) != is_range())
        throw std::invalid_argument("the layout 'flat' is that of ranges, and of no boxes");
    if (layout != Layout::flat) {
        place_box(local, row_axis, col_axis);
        return require_lines();
    }
    if (row_axis != n_axes - 2 || col_axis != n_axes - 1)
        throw std::invalid_argument(
            "a flat range must be of a tensor that is factored over its last two axes");
    place_range(std::size_t(local[0]));
    require_lines();
}

void Part::require_lines() const {
    if (!shared) return;
    if (layout != Layout::grid && layout != Layout::flat)
        throw std::invalid_argument("only parts of the layouts 'grid' and 'flat' share lines");
    for (const SharedLines& lines : *shared)
        if (lines.group < 0 || lines.begin > lines.end ||
            lines.end > (lines.are_rows ? n_row_lines : n_col_lines))
            throw std::invalid_argument("shared lines must be lines of the part");
}

void Part::place_box(const std::vector<std::ptrdiff_t>& local, int row_axis, int col_axis) {
    const auto spans = [&](std::size_t d) { return local[d] == shape[d]; };
    std::vector<std::size_t> batch;
    for (std::size_t d = 0; d < shape.size(); ++d)
        if (int(d) != row_axis && int(d) != col_axis) batch.push_back(d);
    const bool has_batch = std::all_of(batch.begin(), batch.end(), spans);
    const bool has_rows = spans(std::size_t(row_axis)), has_cols = spans(std::size_t(col_axis));
    const bool is_empty =
        std::any_of(local.begin(), local.end(), [](std::ptrdiff_t n) { return n == 0; });
    const bool fits = layout == Layout::rows   ? has_cols && has_batch
                      : layout == Layout::cols ? has_rows && has_batch
                                               : layout == Layout::grid || (has_rows && has_cols);
    if (!fits && !(is_empty && layout == Layout::batch))
        throw std::invalid_argument(
            "a part of the layout 'rows' must have whole rows of all matrices, one of 'cols' whole "
            "columns, one of 'batch' whole matrices");
    if (is_empty) return;
    Box box{};
    box.n_rows = n_rows;
    box.n_cols = n_cols;
    box.row = std::size_t(start[std::size_t(row_axis)]);
    box.col = std::size_t(start[std::size_t(col_axis)]);
    box.owns_rows = layout == Layout::rows;
    box.owns_cols = layout == Layout::cols;
    std::size_t n = 1;
    for (const std::size_t d : batch) n *= std::size_t(local[d]);
    for (std::size_t m = 0; m < n; ++m) {
        std::size_t matrix = 0, rest = m, step = 1;
        for (auto d = batch.rbegin(); d != batch.rend(); ++d) {
            const auto length = std::size_t(local[*d]);
            matrix += (std::size_t(start[*d]) + rest % length) * step;
            rest /= length;
            step *= std::size_t(shape[*d]);
        }
        box.matrices.push_back(matrix);
    }
    n_row_lines = n * std::size_t(local[std::size_t(row_axis)]);
    n_col_lines = n * std::size_t(local[std::size_t(col_axis)]);
    boxes.push_back(std::move(box));
}

// Whole matrices together; of a cut one the end of a row, whole rows, the beginning of a row.
void Part::place_range(std::size_t n) {
    if (n == 0) return;
    const std::size_t size = n_rows * n_cols, first = std::size_t(start[0]), end = first + n;
    const std::size_t first_line = first / n_cols, first_matrix = first / size;
    n_row_lines = (end - 1) / n_cols - first_line + 1;
    n_col_lines = ((end - 1) / size - first_matrix + 1) * n_cols;
    const auto add = [&](std::size_t from, std::size_t matrices, std::size_t rows,
                         std::size_t cols) {
        Box box{};
        const std::size_t matrix = from / size;
        box.n_rows = n_rows;
        box.n_cols = n_cols;
        box.row = from % size / n_cols;
        box.col = from % n_cols;
        for (std::size_t m = 0; m < matrices; ++m) box.matrices.push_back(matrix + m);
        box.shape[0] = std::ptrdiff_t(matrices);
        box.shape[1] = std::ptrdiff_t(rows);
        box.shape[2] = std::ptrdiff_t(cols);
        box.element = from - first;
        box.row_line = from / n_cols - first_line;
        box.col_line = (matrix - first_matrix) * n_cols + box.col;
        boxes.push_back(std::move(box));
        return from + matrices * rows * cols;
    };
    for (std::size_t at = first; at < end;) {
        const std::size_t left = end - at, of_row = at % n_cols;
        const std::size_t of_matrix = at % size;
        if (of_matrix == 0 && left >= size)
            at = add(at, left / size, n_rows, n_cols);
        else if (of_row != 0 || left < n_cols)
            at = add(at, 1, 1, std::min(left, n_cols - of_row));
        else
            at = add(at, 1, std::min(left, size - of_matrix) / n_cols, n_cols);
    }
}

std::size_t Part::run_of(const Array& local) const {
    if (is_range()) return size_of(local);
    std::size_t run = 1;
    for (int d = local.ndim - 1; d >= 0; --d) {
        run *= std::size_t(local.shape[d]);
        if (local.shape[d] != shape[std::size_t(d)]) break;
    }
    return run;
}

std::ptrdiff_t Part::index_of(std::ptrdiff_t local_index, const Array& local) const {
    if (local_index < 0) return local_index;
    if (is_range()) return start[0] + local_index;
    std::ptrdiff_t index = 0, step = 1;
    for (int d = local.ndim - 1; d >= 0; --d) {
        index += (start[std::size_t(d)] + local_index % local.shape[d]) * step;
        local_index /= local.shape[d];
        step *= shape[std::size_t(d)];
    }
    return index;
}

}  // namespace adafactor
