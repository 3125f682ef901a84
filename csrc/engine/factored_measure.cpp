// The first sweep of a factored tensor: reads grad, and param where its squares are not carried,
// and writes partial sums and the new running means of the owned axis.
#include <algorithm>

#include "engine/factored.hpp"

namespace adafactor {

// Groups of grad and tiles of param from the same place in turn: what was read last, of both, is
// still in the outer cache when apply begins there.
void FactoredStep::measure(std::size_t task, char* scratch) {
    const std::size_t turns = geometry_.measure_turns;
    const std::size_t chunk = task / turns, turn = task % turns;
    const auto first = [turns](std::size_t k, std::size_t n) {
        return (k * n + turns - 1) / turns;
    };
    const std::size_t n_groups = geometry_.partition.n_groups, n_tiles = geometry_.tiling.n_tiles;
    for (auto group = first(turn, n_groups); group < first(turn + 1, n_groups); ++group)
        measure_group(chunk, group, scratch);
    if (!param_squares_.is_unknown()) return;
    for (auto tile = first(turn, n_tiles); tile < first(turn + 1, n_tiles); ++tile)
        measure_param(chunk, tile, scratch);
}

void FactoredStep::measure_group(std::size_t chunk, std::size_t group, char* scratch) {
    measured_.take(group, [&](Walk walk) { measure_group(chunk, group, walk, scratch); });
}

void FactoredStep::measure_group(std::size_t chunk, std::size_t group, Walk walk, char* scratch) {
    const Partition& partition = geometry_.partition;
    geometry_.for_matrices(chunk, [&](std::size_t m) {
        std::fill_n(group_of(sums_.group_sq, m, group), partition.n_cross, 0.0);
        std::fill_n(group_of(sums_.group_weighted, m, group), partition.n_cross, 0.0);
    });
    const std::size_t block = geometry_.measured_block();
    const std::size_t begin = group * partition.group;
    const std::size_t end = std::min(begin + partition.group, partition.n_own);
    for (std::size_t k = begin; k < end; k += block)
        geometry_.for_matrices(chunk, [&](std::size_t m) {
            measure_block(m, group, k, std::min(block, end - k), walk, scratch);
        });
}

// Lines [first, first + n) of the owned axis.
void FactoredStep::measure_block(std::size_t matrix, std::size_t group, std::size_t first,
                                 std::size_t n, Walk walk, char* scratch) {
    const Geometry& at = geometry_;
    const std::size_t line = matrix * (at.owns_rows ? at.rows : at.cols) + first;
    Statistics out{};
    out.moment = moment();
    // Beside a float64 param, fp32 sums would be the larger error. Where so little is added to V,
    // squares that underflow in fp32 would matter.
    out.wide =
        !is_all_float() ||
        hyper_.eps_squares + hyper_.eps_means + hyper_.root_floor * hyper_.root_floor < 1e-36;
    out.own_old = (at.owns_rows ? old_.row : old_.col) + line;
    out.own_new = (at.owns_rows ? means_.row : means_.col) + line;
    out.own_sum_sq = (at.owns_rows ? sums_.row_sq : sums_.col_sq) + line;
    out.cross_sum_sq = group_of(sums_.group_sq, matrix, group);
    out.cross_weighted = group_of(sums_.group_weighted, matrix, group);

    const MatrixView view = at.grad[matrix];
    const bool owns_outer = at.partition.owns_outer;
    const Rect part = owns_outer ? Rect{first, 0, n, view.inner} : Rect{0, first, view.outer, n};
    Block grad =
        view.has_unit_runs() ? block_in_place(view, part) : gather(view, part, copies_of(scratch));
    grad.walk = walk;
    (owns_outer ? kernels_.measure_rows : kernels_.measure_cols)(grad, out, scratch);
}

void FactoredStep::measure_param(std::size_t chunk, std::size_t tile, char* scratch) {
    summed_.take(tile, [&](Walk walk) {
        sum_param(chunk, tile, walk, scratch, [&](std::size_t m) {
            return param_squares_.to_measure(m * geometry_.tiling.n_tiles + tile);
        });
    });
}

}  // namespace adafactor
