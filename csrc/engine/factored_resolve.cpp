// Between the sweeps of a factored tensor: finishes the second moment from the partial sums, looks
// whether all is well, finds RMS(u) and the step size, and makes the factors that apply takes.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/factored.hpp"

namespace adafactor {
namespace {

// Calls body(begin, end) for parts of one axis, each of whose numbers costs much more than an
// element.
template <class Body>
void for_parts_of_axis(const Team& team, std::size_t size, std::size_t cost, const Body& body) {
    constexpr std::size_t part = 1024;
    parallel_for((size + part - 1) / part, team_size(8 * size * cost, team.threads()),
                 [&](std::size_t k, int) { body(k * part, std::min((k + 1) * part, size)); });
}

}  // namespace

class FactoredStep::Resolver {
public:
    Resolver(FactoredStep& step, const Team& team)
        : step_(step),
          team_(team),
          at_(step.geometry_),
          hyper_(step.hyper_),
          kernels_(step.kernels_),
          moments_(step.resolving_.moments),
          mean_u_sq_(step.resolving_.mean_u_sq),
          to_(step.resolved_) {}

    void finish_param() {
        if (!step_.param_squares_.is_unknown()) return;
        mean_of_tiles(step_.complete_param_squares(team_), step_.mean_param_sq_);
    }

    // Adds up the groups and finishes the crossed axes.
    void finish_moments() {
        for_each_matrix([&](std::size_t m, const Team& by) {
            SecondMoment& moment = moments_[m];
            const std::size_t row = m * at_.rows, col = m * at_.cols;
            moment.rows = {at_.rows, step_.means_.row + row, step_.sums_.row_sq + row,
                           hyper_.eps_means};
            moment.cols = {at_.cols, step_.means_.col + col, step_.sums_.col_sq + col,
                           hyper_.eps_means};
            const Partition& partition = at_.partition;
            const CrossSums sums{step_.group_of(step_.sums_.group_sq, m, 0),
                                 step_.group_of(step_.sums_.group_weighted, m, 0),
                                 step_.sums_.n_groups,
                                 step_.moment(),
                                 double(partition.n_own),
                                 at_.owns_rows ? step_.old_.col + col : step_.old_.row + row};
            for_parts_of_axis(by, partition.n_cross, sums.n_groups,
                              [&](std::size_t begin, std::size_t end) {
                                  kernels_.add_groups(sums, begin, end, crossed(moment));
                              });
            moment.row_summary = kernels_.summarize(moment.rows);
            moment.col_summary = kernels_.summarize(moment.cols);
            const double mean = moment.row_summary.sum / double(at_.rows);
            moment.mean = mean < hyper_.mean_floor ? hyper_.mean_floor : mean;
        });
        step_.report_->grad_sq = 0;
        for (std::size_t m = 0; m < at_.n_matrices; ++m)
            step_.report_->grad_sq += moments_[m].row_summary.sum_sq;
    }

    Fault fault() const {
        const bool param_is_finite =
            !hyper_.scale_parameter || all_are_finite(step_.mean_param_sq_);
        const bool is_well = param_is_finite && all_moments([&](const SecondMoment& moment) {
                                 return is_usable(moment, hyper_);
                             });
        if (is_well) return state_holds_means() ? Fault::none : Fault::state_format;
        const bool grad_is_finite = all_moments([](const SecondMoment& moment) {
            return std::isfinite(moment.row_summary.sum_sq) &&
                   std::isfinite(moment.col_summary.sum_sq);
        });
        return fault_of(grad_is_finite, param_is_finite, false);
    }

    // Whether the state's format holds the new means.
    bool state_holds_means() const {
        if (step_.tensor_.state_format == Format::float64) return true;
        const auto holds = [](const Axis& axis, const AxisSummary& summary) {
            return summary.sum <= kLargestFloat ||
                   std::all_of(axis.running_mean, axis.running_mean + axis.size,
                               [](double mean) { return mean <= kLargestFloat; });
        };
        return all_moments([&](const SecondMoment& moment) {
            return holds(moment.rows, moment.row_summary) && holds(moment.cols, moment.col_summary);
        });
    }

    // Finds the form, the step sizes and the factors; false if u is not finite. `literal`:
    // something is not finite already, do as IEEE arithmetic does with the formula.
    bool choose_update(bool literal) {
        const bool clips = std::isfinite(hyper_.clip_threshold);
        std::fill_n(mean_u_sq_, at_.n_matrices, std::numeric_limits<double>::quiet_NaN());
        std::fill_n(to_.descent, at_.n_matrices, Descent{});
        to_.separable = false;
        if (!literal && all_moments([&](const SecondMoment& moment) {
                return eps_is_lost(moment, hyper_, step_.is_all_float() ? 27 : 54);
            })) {
            find_separable_u();
            to_.separable = !clips || all_are_finite(mean_u_sq_);
        }
        if (!to_.separable && clips) {
            to_.wide = !float_will_do(literal);
            fill_factors(literal);
            find_direct_u();
            if (!to_.wide && !all_are_finite(mean_u_sq_)) {
                to_.wide = true;
                fill_factors(literal);
                find_direct_u();
            }
            if (!all_are_finite(mean_u_sq_) && !literal) return false;
        }
        find_step_sizes();
        to_.wide = !float_will_do(literal);
        fill_factors(literal);
        return true;
    }

private:
    Axis& crossed(SecondMoment& moment) const { return at_.owns_rows ? moment.cols : moment.rows; }

    template <class Test>  // test(moment)
    bool all_moments(const Test& test) const {
        return std::all_of(moments_, moments_ + at_.n_matrices, test);
    }

    bool all_are_finite(const double* of_matrices) const {
        return std::all_of(of_matrices, of_matrices + at_.n_matrices,
                           [](double x) { return std::isfinite(x); });
    }

    // Calls body(matrix, the team for it).
    template <class Body>
    void for_each_matrix(const Body& body) const {
        if (at_.n_matrices == 1) return body(std::size_t(0), team_);
        team_.for_tasks(at_.n_chunks, Order::forwards, [&](std::size_t chunk, int thread, char*) {
            at_.for_matrices(chunk, [&](std::size_t m) { body(m, team_.alone(thread)); });
        });
    }

    // The means of squares that sums over tiles and hyper.per_matrix ask for.
    void mean_of_tiles(const SumWords* sums, double* mean) const {
        const std::size_t n_tiles = at_.tiling.n_tiles;
        double total = 0;
        for (std::size_t m = 0; m < at_.n_matrices; ++m) {
            TwoWords words;
            for (std::size_t tile = 0; tile < n_tiles; ++tile) words.add(sums[m * n_tiles + tile]);
            const double sum = words.value();
            mean[m] = sum / at_.n_elements();
            total += sum;
        }
        if (!hyper_.per_matrix)
            std::fill_n(mean, at_.n_matrices, total / (at_.n_elements() * double(at_.n_matrices)));
    }

    // RMS(u)^2 in the separable form: one dot product. Not finite if its terms left the range that
    // they were summed in.
    void find_separable_u() {
        for_each_matrix([&](std::size_t m, const Team&) {
            mean_u_sq_[m] =
                moments_[m].mean *
                kernels_.sum_over_means(crossed(moments_[m]),
                                        step_.group_of(step_.sums_.group_weighted, m, 0));
        });
        double total = 0;
        for (std::size_t m = 0; m < at_.n_matrices; ++m) total += mean_u_sq_[m];
        for (std::size_t m = 0; m < at_.n_matrices; ++m)
            mean_u_sq_[m] =
                (hyper_.per_matrix ? mean_u_sq_[m] / at_.n_elements()
                                   : total / (at_.n_elements() * double(at_.n_matrices))) *
                step_.grad_sq_scale();
    }

    // RMS(u)^2 in the direct form, which takes a sweep of its own.
    void find_direct_u() {
        mean_of_tiles(step_.sum_u_squares(team_), mean_u_sq_);
        for (std::size_t m = 0; m < at_.n_matrices; ++m) mean_u_sq_[m] *= step_.grad_sq_scale();
    }

    void find_step_sizes() {
        TensorReport& report = *step_.report_;
        double u_sq = 0, param_sq = 0;
        for (std::size_t m = 0; m < at_.n_matrices; ++m) {
            const StepSize size = clip_and_scale(hyper_, step_.has_momentum(), mean_u_sq_[m],
                                                 step_.mean_param_sq_[m]);
            to_.descent[m] = size.descent;
            note(size, m == 0, report);
            u_sq += mean_u_sq_[m];
            param_sq += step_.mean_param_sq_[m];
        }
        bound(u_sq, param_sq);
        const double n = double(at_.n_matrices);
        report.rms_u = std::sqrt(u_sq / n);
        if (hyper_.scale_parameter) report.rms_param = std::sqrt(param_sq / n);
    }

    // Of the sums of means over matrices. Where nothing is clipped u may not be known: no element
    // exceeds the gradient's over the least root.
    void bound(double u_sq, double param_sq) {
        if (std::isnan(u_sq)) {
            u_sq = 0;
            for (std::size_t m = 0; m < at_.n_matrices; ++m) {
                const SecondMoment& moment = moments_[m];
                const double root =
                    std::max({least_root(moment), hyper_.eps_root, hyper_.root_floor});
                u_sq += moment.row_summary.sum_sq * step_.grad_sq_scale() / (root * root);
            }
        } else {
            u_sq *= at_.n_elements();
        }
        const std::size_t n = hyper_.per_matrix ? at_.n_matrices : 1;
        step_.bound(to_.descent, n, u_sq, param_sq * at_.n_elements());
    }

    bool float_will_do(bool literal) const {
        if (!step_.is_all_float() || literal) return false;
        for (std::size_t m = 0; m < at_.n_matrices; ++m)
            if (!float_holds(moments_[m], to_.separable, to_.descent[m], hyper_)) return false;
        return true;
    }

    void fill_factors(bool literal) {
        for_each_matrix([&](std::size_t m, const Team& by) {
            const SecondMoment& moment = moments_[m];
            const double otherwise = to_.separable ? 0.0 : 1.0;
            const double weight = to_.separable ? to_.descent[m].weight : 1.0;
            fill_axis(by, moment.rows, {to_.separable, literal, std::sqrt(moment.mean), otherwise},
                      to_.row_factor, m * at_.rows);
            fill_axis(by, moment.cols, {to_.separable, literal, weight, otherwise}, to_.col_factor,
                      m * at_.cols);
        });
    }

    void fill_axis(const Team& team, const Axis& axis, const FactorRule& rule, double* factors,
                   std::size_t first) {
        for_parts_of_axis(team, axis.size, 1, [&](std::size_t begin, std::size_t end) {
            if (to_.wide)
                kernels_.fill_double_factors(axis, rule, begin, end, factors + first);
            else
                kernels_.fill_float_factors(axis, rule, begin, end,
                                            reinterpret_cast<float*>(factors) + first);
        });
    }

    FactoredStep& step_;
    const Team& team_;
    const Geometry& at_;
    const HyperParameters& hyper_;
    const KernelTable& kernels_;
    SecondMoment* const moments_;
    double* const mean_u_sq_;
    Resolved& to_;
};

Fault FactoredStep::resolve(const Team& team, bool propagate) {
    Resolver resolver(*this, team);
    resolver.finish_param();
    resolver.finish_moments();
    const Fault fault = resolver.fault();
    if (fault != Fault::none && !propagate) return fault;
    const bool literal = fault != Fault::none && fault != Fault::state_format;
    if (resolver.choose_update(literal)) return fault;
    if (propagate) resolver.choose_update(true);
    return Fault::second_moment;
}

// Of the tiles whose sums are not carried.
const SumWords* FactoredStep::complete_param_squares(const Team& team) {
    const std::size_t n_tiles = geometry_.tiling.n_tiles;
    return param_squares_.complete([&] {
        team.for_tasks(geometry_.n_chunks * n_tiles, Order::forwards,
                       [&](std::size_t task, int, char* scratch) {
                           measure_param(task / n_tiles, task % n_tiles, scratch);
                       });
    });
}

const SumWords* FactoredStep::sum_u_squares(const Team& team) {
    const Geometry& at = geometry_;
    const std::size_t n_tiles = at.tiling.n_tiles;
    SumWords* const sums = resolving_.tile_u_sq;
    const bool in_place = at.grad_like_param.has_unit_runs();
    team.for_tasks(at.n_tiles(), Order::forwards, [&](std::size_t index, int, char* scratch) {
        const std::size_t m = index / n_tiles;
        const Rect tile = at.tiling[index % n_tiles];
        const MatrixView grad = at.grad_like_param[m];
        sums[index] = {};
        const auto add = [&](const Block& block, const Rect& part) {
            add_to(sums[index], kernels_.sum_u_squares(block, factors_of(m, part)));
        };
        if (in_place) return add(block_in_place(grad, tile), tile);
        for_parts_of(tile,
                     [&](const Rect& part) { add(gather(grad, part, copies_of(scratch)), part); });
    });
    return sums;
}

}  // namespace adafactor
