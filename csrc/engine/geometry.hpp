// How a factored tensor is seen: as matrices, and these as blocks, tiles and tasks. Cuts depend on
// shapes and the order of memory alone, so no bit of a result depends on the threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>

#include "adafactor.hpp"
#include "engine/part.hpp"
#include "engine/small_calls.hpp"
#include "engine/strided.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// How measure cuts a gradient into groups of blocks; groups are added up in order.
//
// A block is a panel of whole runs (`owns_outer`) or a tile of all runs (not), so that one axis's
// statistics are final within it while it is in cache. Panels are the better choice until runs are
// long and few.
struct Partition {
    bool owns_outer;
    std::size_t block;  // outer runs, or inner elements, of a block
    std::size_t group;  // the same of a group
    std::size_t n_groups;
    std::size_t n_own, n_cross;

    // `owns_outer`, unless the shape is to decide.
    static Partition of(std::size_t outer, std::size_t inner, std::optional<bool> owns_outer) {
        constexpr std::size_t most_groups = 64;
        constexpr std::size_t most_partial_sums = std::size_t(1) << 17;  // of all groups: 2 MiB
        constexpr std::size_t tile_elements = std::size_t(1) << 17;
        Partition p;
        p.owns_outer = owns_outer.value_or(outer > 2048 ||
                                           (inner <= 16384 && (outer >= 128 || inner <= 1024)));
        p.n_own = p.owns_outer ? outer : inner;
        p.n_cross = p.owns_outer ? inner : outer;
        p.block =
            p.owns_outer ? kPanelRows : std::clamp<std::size_t>(tile_elements / outer, 64, kChunk);
        const std::size_t least = p.owns_outer ? 128 : std::max(p.block, tile_elements / outer);
        const std::size_t most =
            std::clamp<std::size_t>(most_partial_sums / p.n_cross, 4, most_groups);
        p.group = std::max(least, (p.n_own + most - 1) / most);
        p.group = (p.group + p.block - 1) / p.block * p.block;
        p.n_groups = (p.n_own + p.group - 1) / p.group;
        return p;
    }
};

// Rectangles of about kTaskElements, whole runs where they are not longer.
struct Tiling {
    std::size_t outer, inner, rows, cols, n_across, n_tiles;

    static Tiling of(std::size_t outer, std::size_t inner) {
        Tiling t{outer, inner, 0, std::min(inner, kTaskElements), 0, 0};
        t.rows = std::max<std::size_t>(kTaskElements / t.cols, 4);
        t.n_across = (t.inner + t.cols - 1) / t.cols;
        t.n_tiles = (t.outer + t.rows - 1) / t.rows * t.n_across;
        return t;
    }

    Rect operator[](std::size_t tile) const {
        const std::size_t i = tile / n_across * rows, j = tile % n_across * cols;
        return {i, j, std::min(rows, outer - i), std::min(cols, inner - j)};
    }
};

// Elements that are no neighbours in memory go through copies of parts of this size.
inline constexpr std::size_t kPartRows = 32, kPartCols = 256;

template <class Body>  // body(part)
void for_parts_of(const Rect& tile, const Body& body) {
    for (std::size_t r = 0; r < tile.rows; r += kPartRows)
        for (std::size_t c = 0; c < tile.cols; c += kPartCols)
            body(Rect{tile.i + r, tile.j + c, std::min(kPartRows, tile.rows - r),
                      std::min(kPartCols, tile.cols - c)});
}

struct Geometry {
    MatrixBatch param, grad;
    MatrixBatch grad_like_param, m, copy;  // with runs along param's
    Partition partition;                   // of each matrix of grad
    Tiling tiling;                         // of each matrix of param
    std::size_t rows, cols, n_matrices;
    bool owns_rows;  // a block of grad spans whole rows of the matrix
    // Of a part: its elements are numbered as those of many small matrices; its runs begin within
    // kNumbered numbers of Rounding.
    bool is_numbered_as_small, is_between_draws;

    // Tasks of about kTaskElements: chunks of small matrices, or turns within a large one and those
    // that are interleaved with it.
    std::size_t interleaved, matrices_per_task, n_chunks;
    std::size_t measure_turns = 1, apply_turns = 1;

    Geometry(const Tensor& tensor, bool measures_param)
        : param(param_of(tensor)),
          grad(MatrixBatch::along_memory(tensor.grad, tensor.row_axis, tensor.col_axis)),
          grad_like_param(tensor.grad, tensor.row_axis, tensor.col_axis, param.swapped()),
          m(tensor.m, tensor.row_axis, tensor.col_axis, param.swapped()),
          copy(tensor.copy, tensor.row_axis, tensor.col_axis, param.swapped()),
          partition(Partition::of(grad.outer(), grad.inner(), owned_axis(tensor))),
          tiling(Tiling::of(param.outer(), param.inner())),
          rows(std::size_t(tensor.param.shape[tensor.row_axis])),
          cols(std::size_t(tensor.param.shape[tensor.col_axis])),
          n_matrices(param.size()),
          owns_rows(partition.owns_outer != grad.swapped()),
          is_numbered_as_small(is_of_small(tensor)),
          is_between_draws(
              is_numbered_as_small ||
              (tensor.stochastic && tensor.box != nullptr &&
               (param.swapped() ? tensor.box->row : tensor.box->col) % kNumbered != 0)),
          interleaved(std::max(param.interleaved(), grad.interleaved())) {
        const std::size_t fitting =
            std::clamp<std::size_t>(kTaskElements / (rows * cols), 1, n_matrices);
        if (fitting > interleaved) {
            matrices_per_task = fitting / interleaved * interleaved;
        } else {
            matrices_per_task = interleaved;
            measure_turns = std::max(partition.n_groups, measures_param ? tiling.n_tiles : 0);
            apply_turns = tiling.n_tiles;
        }
        n_chunks = (n_matrices + matrices_per_task - 1) / matrices_per_task;
    }

    double n_elements() const { return double(rows) * double(cols); }  // of a matrix
    std::size_t n_tiles() const { return n_matrices * tiling.n_tiles; }

    template <class Body>  // body(matrix)
    void for_matrices(std::size_t chunk, const Body& body) const {
        const std::size_t begin = chunk * matrices_per_task;
        const std::size_t end = std::min(begin + matrices_per_task, n_matrices);
        for (std::size_t matrix = begin; matrix < end; ++matrix) body(matrix);
    }

    // Outer runs, or inner elements, that measure takes at once: fewer where they are copied.
    std::size_t measured_block() const {
        if (grad.has_unit_runs() || !partition.owns_outer) return partition.block;
        return std::clamp<std::size_t>(kTaskElements / (grad.inner() * interleaved), 4, kPanelRows);
    }

    // Whether apply goes by parts, because some array's runs are not of neighbours, or do not begin
    // where a draw of random bits does.
    bool applies_by_parts() const {
        return is_between_draws || !grad_like_param.has_unit_runs() || !param.has_unit_runs() ||
               !m.has_unit_runs() || !copy.has_unit_runs();
    }

    // Bytes of a thread's own memory: sums of a block, and behind them copies of its elements.
    std::size_t sums_size() const {
        const std::size_t lines = std::max(partition.n_cross, partition.block);
        return padded(2 * padded(lines) * sizeof(double));
    }
    std::size_t copies_size() const {
        std::size_t size = 0;
        if (!grad.has_unit_runs())
            size = copied_size(
                grad.format(),
                measured_block() * (partition.owns_outer ? grad.inner() : grad.outer()));
        if (applies_by_parts()) size = std::max(size, 8 * part_size());
        return size;
    }
    static constexpr std::size_t part_size() {
        return kPartRows * (kPartCols + kNumbered) * sizeof(double);
    }

private:
    // A part whose random bits are those of one process, which would take many small matrices.
    static bool is_of_small(const Tensor& tensor) {
        const Part* const whole = tensor.box != nullptr ? tensor.part : nullptr;
        return tensor.stochastic && whole != nullptr &&
               SmallCalls::take(whole->n_rows * whole->n_cols, whole->n_matrices);
    }

    // Random bits are numbered along param's runs: of a part these are those of the whole tensor in
    // C order, whatever the part's own shape and memory.
    static MatrixBatch param_of(const Tensor& tensor) {
        const int row = tensor.row_axis, col = tensor.col_axis;
        const Box* const box = tensor.box;
        if (box == nullptr || !tensor.stochastic)
            return MatrixBatch::along_memory(tensor.param, row, col);
        const bool swapped =
            !is_of_small(tensor) && box->n_rows != 1 && (box->n_cols == 1 || row > col);
        return {tensor.param, row, col, swapped};
    }

    // Of a part, the axis whose lines it has whole: their statistics are final within a block.
    std::optional<bool> owned_axis(const Tensor& tensor) const {
        if (tensor.box == nullptr || tensor.box->owns_rows == tensor.box->owns_cols) return {};
        return tensor.box->owns_rows != grad.swapped();
    }

    static std::size_t padded(std::size_t n) { return (n + kPadding - 1) / kPadding * kPadding; }
};

}  // namespace adafactor
