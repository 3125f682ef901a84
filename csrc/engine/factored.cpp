// The memory of a factored tensor's step.
#include "engine/factored.hpp"

#include <algorithm>
#include <limits>
#include <new>

namespace adafactor {

void FactoredStep::allocate(Scratch& for_step) {
    const Geometry& at = geometry_;
    const std::size_t n = at.n_matrices;
    const auto doubles_of = [&](const void* means, std::size_t size) {
        if (tensor_.state_format == Format::float64) return static_cast<const double*>(means);
        double* const doubles = for_step.take<double>(size);
        std::copy_n(static_cast<const float*>(means), size, doubles);
        return static_cast<const double*>(doubles);
    };
    old_ = {doubles_of(tensor_.exp_row, n * at.rows), doubles_of(tensor_.exp_col, n * at.cols)};
    means_ = {for_step.take<double>(n * at.rows), for_step.take<double>(n * at.cols)};
    // Before the first there is room for what stands beside zeros before a row.
    const std::size_t before = at.is_between_draws ? kNumbered : 0;
    const auto factors = [&](std::size_t size) {
        double* const all = for_step.take<double>(before + size);
        std::fill_n(all, before, 0.0);
        return all + before;
    };
    resolved_.row_factor = factors(n * at.rows);
    resolved_.col_factor = factors(n * at.cols);
    resolved_.descent = for_step.take<Descent>(n);
    mean_param_sq_ = for_step.take<double>(n);
    std::fill_n(mean_param_sq_, n, std::numeric_limits<double>::quiet_NaN());
    if (n > 1) return;  // walks are compared where pieces are large
    const std::size_t n_tiles = at.tiling.n_tiles;
    const Partition& partition = at.partition;
    if (partition.owns_outer && partition.group * partition.n_cross >= kTaskElements)
        measured_.allocate(for_step, partition.n_groups);
    if (param_squares_.is_unknown() && tensor_.carried == nullptr)
        summed_.allocate(for_step, n_tiles);
    if (!at.applies_by_parts()) applied_.allocate(for_step, n_tiles);
}

void FactoredStep::end_apply() {
    param_squares_.end_apply();
    for (const WalkedSweep* sweep : {&measured_, &summed_, &applied_}) sweep->finish();
}

void FactoredStep::allocate_sums(Scratch& for_measure) {
    sums_ = PartialSums(geometry_, geometry_.partition.n_groups, for_measure);
    allocate_resolving(for_measure);
    param_squares_.allocate(tensor_.param, geometry_.n_tiles(), for_measure);
}

void FactoredStep::allocate_resolving(Scratch& scratch) {
    const std::size_t n = geometry_.n_matrices;
    resolving_ = {scratch.take<SecondMoment>(n), scratch.take<double>(n),
                  scratch.take<SumWords>(geometry_.n_tiles())};
}

// The groups' sums are added up, in the order in which resolve would: what is kept is a few numbers
// for each row and column.
void FactoredStep::keep_sums(Scratch& own) {
    const Geometry& at = geometry_;
    const PartialSums measured = sums_;
    sums_ = PartialSums(at, 1, own);
    allocate_resolving(own);
    param_squares_.keep(at.n_tiles(), own);
    if (at.owns_rows)
        std::copy_n(measured.row_sq, at.n_matrices * at.rows, sums_.row_sq);
    else
        std::copy_n(measured.col_sq, at.n_matrices * at.cols, sums_.col_sq);
    const std::size_t n = at.partition.n_cross, n_groups = measured.n_groups;
    const auto add_up = [&](const double* groups, double* total) {
        for (std::size_t m = 0; m < at.n_matrices; ++m, groups += n_groups * n, total += n) {
            std::copy_n(groups, n, total);
            for (std::size_t g = 1; g < n_groups; ++g)
                for (std::size_t k = 0; k < n; ++k) total[k] += groups[g * n + k];
        }
    };
    add_up(measured.group_sq, sums_.group_sq);
    add_up(measured.group_weighted, sums_.group_weighted);
}

TensorStep* make_factored_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                               const KernelTable& kernels, Place place) {
    return new (for_step.take<FactoredStep>(1)) FactoredStep(tensor, report, kernels, place);
}

}  // namespace adafactor
