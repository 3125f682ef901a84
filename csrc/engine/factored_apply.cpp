// The second sweep of a factored tensor: puts the new running means into the state and moves param,
// m and copy by grad and the factors.
#include <algorithm>

#include "engine/factored.hpp"

namespace adafactor {
namespace {

constexpr std::size_t kLookRows = 4;  // of a part whose result is looked at, for its copies' size

}  // namespace

void FactoredStep::begin_apply() {
    const std::size_t n = geometry_.n_matrices;
    const auto keep = [&](const double* means, std::size_t size, void* state) {
        if (tensor_.state_format == Format::float64)
            std::copy_n(means, size, static_cast<double*>(state));
        else
            std::transform(means, means + size, static_cast<float*>(state),
                           [](double mean) { return float(mean); });
    };
    keep(means_.row, n * geometry_.rows, tensor_.exp_row);
    keep(means_.col, n * geometry_.cols, tensor_.exp_col);
    param_squares_.begin_apply();
}

void FactoredStep::apply(std::size_t task, char* scratch) {
    const std::size_t turns = geometry_.apply_turns;
    const bool by_parts = geometry_.applies_by_parts();
    for (auto tile = task % turns; tile < geometry_.tiling.n_tiles; tile += turns) {
        if (by_parts)
            apply_by_parts(task / turns, tile, scratch);
        else
            applied_.take(tile, [&](Walk walk) { apply_in_place(task / turns, tile, walk); });
    }
}

void FactoredStep::apply_in_place(std::size_t chunk, std::size_t tile, Walk walk) const {
    const Geometry& at = geometry_;
    const Rect part = at.tiling[tile];
    const auto block = [&](const MatrixBatch& batch, std::size_t m) {
        return batch.exists() ? block_in_place(batch[m], part) : Block{};
    };
    at.for_matrices(chunk, [&](std::size_t m) {
        SumWords* const sum = written(m, tile);
        Block param = block(at.param, m);
        param.walk = walk;
        const SumWords param_sq = kernels_.apply(
            {param, block(at.m, m), block(at.grad_like_param, m), block(at.copy, m)},
            factors_of(m, part), resolved_.descent[m], rounding_of(m, part), sum != nullptr);
        if (sum != nullptr) *sum = param_sq;
    });
}

void FactoredStep::apply_by_parts(std::size_t chunk, std::size_t tile, char* scratch) const {
    for_parts_of(geometry_.tiling[tile], [&](const Rect& part) {
        geometry_.for_matrices(chunk,
                               [&](std::size_t m) { apply_copies(m, part, copies_of(scratch)); });
    });
    // What was written in parts, and perhaps rounded, is read as the next step would.
    if (written(0, 0) != nullptr)
        sum_param(chunk, tile, summed_.walk(), scratch,
                  [&](std::size_t m) { return written(m, tile); });
}

void FactoredStep::apply_copies(std::size_t matrix, const Rect& part, char* copies) const {
    const Geometry& at = geometry_;
    const auto block = [&](const MatrixBatch& batch, bool is_read) {
        if (!batch.exists()) return Block{};
        const MatrixView view = batch[matrix];
        if (view.has_unit_runs()) return block_in_place(view, part);
        char* const to = copies;
        copies += Geometry::part_size();
        return is_read ? gather(view, part, to) : block_for_copy(view, part, to);
    };
    const StepBlocks blocks{block(at.param, true), block(at.m, true),
                            block(at.grad_like_param, true), block(at.copy, false)};
    apply_blocks(blocks, matrix, part, copies);  // behind those that were taken
    const auto put_back = [&](const Block& from, const MatrixBatch& batch) {
        if (batch.exists() && !batch.has_unit_runs()) scatter(from, batch[matrix], part);
    };
    put_back(blocks.param, at.param);
    put_back(blocks.m, at.m);
    put_back(blocks.copy, at.copy);
}

// `room`: for copies of all blocks, where they do not begin where a draw of random bits does.
void FactoredStep::apply_blocks(const StepBlocks& blocks, std::size_t matrix, const Rect& part,
                                char* room) const {
    if (!geometry_.is_numbered_as_small) return apply_numbered(blocks, matrix, part, room);
    for (std::size_t i = 0; i < part.rows; ++i) {  // each row begins elsewhere in a draw
        const auto row = [i](const Block& block) {
            Block own = block;
            if (own.format != Format::none) own.data += std::ptrdiff_t(i) * own.stride;
            own.rows = 1;
            return own;
        };
        apply_numbered({row(blocks.param), row(blocks.m), row(blocks.grad), row(blocks.copy)},
                       matrix, {part.i + i, part.j, 1, part.cols}, room);
    }
}

// Where rows do not begin where a draw does, zeros stand before them.
void FactoredStep::apply_numbered(const StepBlocks& blocks, std::size_t matrix, const Rect& part,
                                  char* room) const {
    Factors factors = factors_of(matrix, part);
    Rounding rounding = rounding_of(matrix, part);
    const Descent& descent = resolved_.descent[matrix];
    const std::size_t pad = rounding.first % kNumbered;
    if (!rounding.stochastic || pad == 0) {
        kernels_.apply(blocks, factors, descent, rounding, false);
        return;
    }
    const std::size_t size = part.rows * (part.cols + pad) * sizeof(double);
    const StepBlocks padded{padded_block(blocks.param, pad, room),
                            padded_block(blocks.m, pad, room + size),
                            padded_block(blocks.grad, pad, room + 2 * size),
                            padded_block(blocks.copy, pad, room + 3 * size)};
    rounding.first -= pad;
    factors.col = static_cast<const char*>(factors.col) -
                  pad * (factors.wide ? sizeof(double) : sizeof(float));
    kernels_.apply(padded, factors, descent, rounding, false);
    put_padded_back(padded.param, pad, blocks.param);
    put_padded_back(padded.m, pad, blocks.m);
    put_padded_back(padded.copy, pad, blocks.copy);
}

void FactoredStep::look(std::size_t task) {
    const Geometry& at = geometry_;
    for (auto tile = task % at.apply_turns; tile < at.tiling.n_tiles; tile += at.apply_turns) {
        const Rect whole = at.tiling[tile];
        at.for_matrices(task / at.apply_turns, [&](std::size_t m) {
            for (std::size_t r = 0; r < whole.rows; r += kLookRows)
                for (std::size_t c = 0; c < whole.cols; c += kPartCols)
                    look_at(m, {whole.i + r, whole.j + c, std::min(kLookRows, whole.rows - r),
                                std::min(kPartCols, whole.cols - c)});
        });
    }
}

void FactoredStep::look_at(std::size_t matrix, const Rect& part) {
    const Geometry& at = geometry_;
    constexpr std::size_t size = kLookRows * (kPartCols + kNumbered) * sizeof(double);
    alignas(kPadding) char copies[8][size];
    StepBlocks blocks;
    blocks.param = gather(at.param[matrix], part, copies[0]);
    if (at.m.exists()) blocks.m = gather(at.m[matrix], part, copies[1]);
    blocks.grad = gather(at.grad_like_param[matrix], part, copies[2]);
    if (at.copy.exists()) blocks.copy = block_for_copy(at.copy[matrix], part, copies[3]);
    apply_blocks(blocks, matrix, part, copies[4]);
    for (const Block& block : {blocks.param, blocks.m, blocks.copy}) {
        const std::ptrdiff_t found = first_infinite(block);
        if (found < 0) continue;
        const std::size_t i = std::size_t(found) / part.cols, j = std::size_t(found) % part.cols;
        note_infinite(at.param[matrix].at(part.i + i, part.j + j));
    }
}

// The factors of a part of a matrix, in param's order.
Factors FactoredStep::factors_of(std::size_t matrix, const Rect& part) const {
    const bool swapped = geometry_.param.swapped();
    const std::size_t item = resolved_.wide ? sizeof(double) : sizeof(float);
    const auto from = [item](const double* factors, std::size_t k) {
        return static_cast<const void*>(reinterpret_cast<const char*>(factors) + k * item);
    };
    const void* const rows =
        from(resolved_.row_factor, matrix * geometry_.rows + (swapped ? part.j : part.i));
    const void* const cols =
        from(resolved_.col_factor, matrix * geometry_.cols + (swapped ? part.i : part.j));
    return {resolved_.separable,   resolved_.wide,  swapped ? cols : rows,
            swapped ? rows : cols, hyper_.eps_root, hyper_.root_floor};
}

Rounding FactoredStep::rounding_of(std::size_t matrix, const Rect& part) const {
    std::size_t outer = geometry_.param.outer(), inner = geometry_.param.inner();
    std::size_t i = part.i, j = part.j;
    if (const Box* const box = tensor_.box) {  // elements have the numbers of the whole tensor
        const bool swapped = geometry_.param.swapped();
        outer = swapped ? box->n_cols : box->n_rows;
        inner = swapped ? box->n_rows : box->n_cols;
        i += swapped ? box->col : box->row;
        j += swapped ? box->row : box->col;
        matrix = box->matrices[matrix];
    }
    if (geometry_.is_numbered_as_small)
        return rounding(SmallCalls(outer * inner).number_of(matrix) + i * inner + j);
    const std::uint64_t row_step = numbered(inner);
    return rounding((std::uint64_t(matrix) * outer + i) * row_step + j, row_step);
}

}  // namespace adafactor
