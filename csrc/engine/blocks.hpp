// How a matrix is cut into blocks for threads and kernels. Cuts depend on its shape alone, so no
// bit of a result depends on the threads.
#pragma once

#include <algorithm>
#include <cstddef>

#include "engine/layout.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

inline constexpr std::size_t kTile = 65536;  // elements a thread takes at a time

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

    static constexpr std::size_t kMaxGroups = 64;
    static constexpr std::size_t kPartialSums = std::size_t(1) << 17;  // of all groups: 2 MiB
    static constexpr std::size_t kTileElements = std::size_t(1) << 17;

    static Partition of(std::size_t outer, std::size_t inner) {
        Partition p;
        p.owns_outer = outer > 2048 || (inner <= 16384 && (outer >= 128 || inner <= 1024));
        p.n_own = p.owns_outer ? outer : inner;
        p.n_cross = p.owns_outer ? inner : outer;
        p.block =
            p.owns_outer ? kPanelRows : std::clamp<std::size_t>(kTileElements / outer, 64, kChunk);
        const std::size_t least = p.owns_outer ? 128 : std::max(p.block, kTileElements / outer);
        const std::size_t most = std::clamp<std::size_t>(kPartialSums / p.n_cross, 4, kMaxGroups);
        p.group = std::max(least, (p.n_own + most - 1) / most);
        p.group = (p.group + p.block - 1) / p.block * p.block;
        p.n_groups = (p.n_own + p.group - 1) / p.group;
        return p;
    }
};

// Rectangles of about kTile elements, whole runs where they are not longer.
struct Tiling {
    std::size_t outer, inner, rows, cols, n_across, n_tiles;

    static Tiling of(const MatrixView& view) {
        Tiling t{view.outer, view.inner, 0, std::min(view.inner, kTile), 0, 0};
        t.rows = std::max<std::size_t>(kTile / t.cols, 4);
        t.n_across = (t.inner + t.cols - 1) / t.cols;
        t.n_tiles = (t.outer + t.rows - 1) / t.rows * t.n_across;
        return t;
    }

    Rect operator[](std::size_t tile) const {
        const std::size_t i = tile / n_across * rows, j = tile % n_across * cols;
        return {i, j, std::min(rows, outer - i), std::min(cols, inner - j)};
    }
};

// Data that the kernels cannot take as they lie go through copies of this size, one per thread.
inline constexpr std::size_t kPackedRows = 32, kPackedCols = 256;

template <class Body>  // body(part)
void for_packed_parts(const Rect& tile, const Body& body) {
    for (std::size_t r = 0; r < tile.rows; r += kPackedRows)
        for (std::size_t c = 0; c < tile.cols; c += kPackedCols)
            body(Rect{tile.i + r, tile.j + c, std::min(kPackedRows, tile.rows - r),
                      std::min(kPackedCols, tile.cols - c)});
}

template <class T>
Block<T> block_of(const MatrixView& view, const Rect& part) {
    return {reinterpret_cast<T*>(view.at(part.i, part.j)), view.outer_stride, part.rows, part.cols};
}

template <class T>
Block<T> packed_block(const MatrixView& view, const Rect& part, void* place) {
    gather(view, part, place);
    return {static_cast<T*>(place), std::ptrdiff_t(part.cols * sizeof(T)), part.rows, part.cols};
}

}  // namespace adafactor
