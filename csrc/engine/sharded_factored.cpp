#include "engine/sharded_factored.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "engine/measured.hpp"

namespace adafactor {

ShardedFactored::ShardedFactored(const Tensor& tensor, bool given, TensorReport& report,
                                 const ShardedPlaces& places)
    : ShardedTensor(tensor, given, report), kernels_(places.kernels) {
    moments_.resize(n());
    param_sq_.resize(n());
    weighted_.assign(n(), std::numeric_limits<double>::quiet_NaN());
    if (!given) return;
    boxes_.reserve(part_.boxes.size());
    for (const Box& box : part_.boxes) {
        LocalBox& at = boxes_.emplace_back();
        at.box = &box;
        at.tensor = tensor;
        at.tensor.box = &box;
        if (part_.is_range()) {
            // The arrays of one axis as (matrices, rows, cols).
            for (Array* array :
                 {&at.tensor.param, &at.tensor.grad, &at.tensor.m, &at.tensor.copy}) {
                if (array->data == nullptr) continue;
                const std::ptrdiff_t stride = array->strides[0];
                auto* const strides = places.for_step.take<std::ptrdiff_t>(3);
                strides[2] = stride;
                strides[1] = stride * box.shape[2];
                strides[0] = stride * box.shape[1] * box.shape[2];
                array->data += std::ptrdiff_t(box.element) * stride;
                array->ndim = 3;
                array->shape = box.shape;
                array->strides = strides;
            }
            at.tensor.row_axis = 1;
            at.tensor.col_axis = 2;
            const std::size_t item = item_size(tensor.state_format);
            at.tensor.exp_row = static_cast<char*>(tensor.exp_row) + box.row_line * item;
            at.tensor.exp_col = static_cast<char*>(tensor.exp_col) + box.col_line * item;
            at.tensor.carried = nullptr;  // of one box only
        }
        TensorStep* step;
        if (!places.exact && tensor.measured != nullptr && tensor.measured->serves(tensor)) {
            step = tensor.measured->take_over(tensor, report);
        } else {
            step = make_factored_step(at.tensor, report, places.for_step, kernels_, places.place);
            step->allocate(places.for_step);
        }
        at.step = static_cast<FactoredStep*>(step);
        steps_.push_back(step);
        at.n = box.matrices.size();
        at.rows = at.step->geometry_.rows;
        at.cols = at.step->geometry_.cols;
    }
}

void ShardedFactored::finish_measure(const Team& team) {
    for (LocalBox& at : boxes_) {
        FactoredStep& step = *at.step;
        at.row_mean = step.means_.row;
        at.col_mean = step.means_.col;
        at.row_sq = step.sums_.row_sq;
        at.col_sq = step.sums_.col_sq;
        at.old_row = step.old_.row;
        at.old_col = step.old_.col;
        if (!step.param_squares_.is_unknown()) continue;
        const SumWords* const sums = step.complete_param_squares(team);
        const std::size_t n_tiles = step.geometry_.tiling.n_tiles;
        at.param_sq.assign(at.n, {});
        for (std::size_t k = 0; k < at.n; ++k)
            for (std::size_t tile = 0; tile < n_tiles; ++tile)
                at.param_sq[k].add(sums[k * n_tiles + tile]);
    }
}

void ShardedFactored::add_crossed(const LocalBox& at, std::size_t k, double* sum_sq,
                                  double* weighted) const {
    const FactoredStep& step = *at.step;
    const std::size_t n_cross = step.geometry_.partition.n_cross;
    const auto add = [&](double* groups, double* to) {
        for (std::size_t g = 0; g < step.sums_.n_groups; ++g) {
            const double* const group = step.group_of(groups, k, g);
            for (std::size_t j = 0; j < n_cross; ++j) to[j] += group[j];
        }
    };
    add(step.sums_.group_sq, sum_sq);
    if (weighted != nullptr) add(step.sums_.group_weighted, weighted);
}

double* ShardedFactored::finish_crossed(const LocalBox& at, std::size_t k) const {
    const FactoredStep& step = *at.step;
    const bool by_rows = step.geometry_.owns_rows;
    const Axis crossed = by_rows ? cols_of(at, k) : rows_of(at, k);
    const CrossSums sums{step.group_of(step.sums_.group_sq, k, 0),
                         step.group_of(step.sums_.group_weighted, k, 0),
                         step.sums_.n_groups,
                         moment(),
                         double(step.geometry_.partition.n_own),
                         by_rows ? at.old_col + k * at.cols : at.old_row + k * at.rows};
    kernels_.add_groups(sums, 0, crossed.size, crossed);
    return sums.weighted;
}

double ShardedFactored::mean_of_rows(const AxisSummary& rows) const {
    const double mean = rows.sum / double(part_.n_rows);
    return mean < hyper_.mean_floor ? hyper_.mean_floor : mean;
}

bool ShardedFactored::state_holds(const Axis& axis, const AxisSummary& summary) const {
    return tensor_.state_format == Format::float64 || summary.sum <= kLargestFloat ||
           std::all_of(axis.running_mean, axis.running_mean + axis.size,
                       [](double mean) { return mean <= kLargestFloat; });
}

void ShardedFactored::take_sum(double* from) {
    sums_ = from;
    derive(from);
    report_.grad_sq = 0;
    for (const SecondMoment& moment : moments_) report_.grad_sq += moment.row_summary.sum_sq;
}

bool ShardedFactored::scale_grad(double factor) {
    hyper_.grad_scale *= factor;
    for (TensorStep* step : steps_) step->scale_grad(factor);
    if (!always_second()) {
        may_need_second_ = clips() && !literal_ && may_be_direct(factor);
        return true;
    }
    derive(sums_);
    return false;
}

// Whether the direct form may be chosen after the gradient was scaled: no running mean becomes less
// than factor^2 of itself, and their mean no larger.
bool ShardedFactored::may_be_direct(double factor) const {
    HyperParameters larger = hyper_;
    larger.eps_root /= 0.99 * factor * factor;
    larger.root_floor /= 0.99 * factor * factor;
    return !all_moments(
        [&](const SecondMoment& moment) { return eps_is_lost(moment, larger, digits()); });
}

bool ShardedFactored::anticipates_second() {
    separable_ = false;
    descents_.assign(n(), Descent{});
    wide_ = !float_will_do();
    // Floats hide the margin nearly always, doubles never.
    const bool hides_margin = mean_margin() == 0 || !is_all_float() || !wide_;
    anticipates_ = may_need_second_ && hides_margin;
    return anticipates_;
}

// Whether factors of rows would be others if their mean were another within its margin: they grow
// with it, so that its ends tell.
bool ShardedFactored::margin_shows() const {
    std::vector<float> least, most;
    for (const LocalBox& at : boxes_) {
        if (at.step->resolved_.wide) return true;
        least.resize(at.rows);
        most.resize(at.rows);
        for (std::size_t k = 0; k < at.n; ++k) {
            const double mean = moments_[at.box->matrices[k]].mean;
            const double low = std::max(mean * (1 - mean_margin()), hyper_.mean_floor);
            const double high = mean * (1 + mean_margin());
            const Axis rows = rows_of(at, k);
            kernels_.fill_float_factors(rows, {false, false, std::sqrt(low), 1.0}, 0, at.rows,
                                        least.data());
            kernels_.fill_float_factors(rows, {false, false, std::sqrt(high), 1.0}, 0, at.rows,
                                        most.data());
            if (least != most) return true;
        }
    }
    return false;
}

template <class Test>
bool ShardedFactored::all_moments(const Test& test) const {
    return std::all_of(moments_.begin(), moments_.end(), test);
}

bool ShardedFactored::all_are_finite(const std::vector<double>& numbers) {
    return std::all_of(numbers.begin(), numbers.end(), [](double x) { return std::isfinite(x); });
}

Fault ShardedFactored::fault() const {
    const bool param_is_finite = !hyper_.scale_parameter || all_are_finite(param_sq_);
    const bool is_well =
        param_is_finite && !is_unusable_ &&
        all_moments([&](const SecondMoment& moment) { return is_usable(moment, hyper_); });
    if (is_well) return overflows_ ? Fault::state_format : Fault::none;
    const bool grad_is_finite = all_moments([](const SecondMoment& moment) {
        return std::isfinite(moment.row_summary.sum_sq) && std::isfinite(moment.col_summary.sum_sq);
    });
    return fault_of(grad_is_finite, param_is_finite, false);
}

// The means of squares that sums over matrices and hyper.per_matrix ask for.
void ShardedFactored::mean_of(const std::vector<double>& sums, std::vector<double>& mean) const {
    double total = 0;
    mean.resize(n());
    for (std::size_t m = 0; m < n(); ++m) {
        mean[m] = sums[m] / n_elements();
        total += sums[m];
    }
    if (!hyper_.per_matrix)
        std::fill(mean.begin(), mean.end(), total / (n_elements() * double(n())));
}

bool ShardedFactored::find_separable_u() {
    std::vector<double> u_sq(n());
    for (std::size_t m = 0; m < n(); ++m) u_sq[m] = moments_[m].mean * weighted_[m];
    mean_of(u_sq, mean_u_sq_);
    for (double& mean : mean_u_sq_) mean *= grad_sq_scale();
    return all_are_finite(mean_u_sq_);
}

bool ShardedFactored::is_separable() const {
    return !literal_ && all_moments([&](const SecondMoment& moment) {
        return eps_is_lost(moment, hyper_, digits());
    });
}

bool ShardedFactored::float_will_do() const {
    if (!is_all_float() || literal_) return false;
    for (std::size_t m = 0; m < n(); ++m)
        if (!float_holds(moments_[m], separable_, descents_[m], hyper_)) return false;
    return true;
}

Fault ShardedFactored::decide(const Team&, bool propagate) {
    needs_second_ = has_second_ = false;
    const Fault found = fault();
    if (found != Fault::none && !propagate) return found;
    literal_ = found != Fault::none && found != Fault::state_format;
    if (hyper_.scale_parameter)
        mean_of(param_sq_, mean_param_sq_);
    else
        mean_param_sq_.assign(n(), std::numeric_limits<double>::quiet_NaN());
    mean_u_sq_.assign(n(), std::numeric_limits<double>::quiet_NaN());
    descents_.assign(n(), Descent{});
    separable_ = !always_second() && is_separable();
    if (separable_) {
        const bool is_finite = find_separable_u();
        separable_ = !clips() || is_finite;
    }
    needs_second_ = always_second() || (!separable_ && clips());
    if (!needs_second_) return found;
    const bool was_wide = wide_;
    wide_ = !float_will_do();
    has_second_ = anticipates_ && !is_vague_ && !literal_ && wide_ == was_wide;
    if (has_second_) take_u_squares();
    anticipates_ = false;
    return found;
}

void ShardedFactored::measure_second(const Team& team) {
    if (anticipates_) guess_moments(sums_);
    // Whose own lines are no divisors makes of them what the formula does, should that propagate.
    literal_ = literal_ || is_unusable();
    wide_ = wide_ || literal_;
    for (LocalBox& at : boxes_)
        if (!sum_direct_u(team, at, wide_) && !wide_) sum_direct_u(team, at, true);
    if (anticipates_) is_vague_ = is_all_float() && mean_margin() > 0 && margin_shows();
}

// Whether all sums are finite.
bool ShardedFactored::sum_direct_u(const Team& team, LocalBox& at, bool wide) {
    fill_factors(at, wide, false);
    const SumWords* const sums = at.step->sum_u_squares(team);
    const Geometry& geometry = at.step->geometry_;
    at.u_sq.assign(at.n, {});
    bool are_finite = true;
    for (std::size_t k = 0; k < geometry.n_tiles(); ++k) {
        at.u_sq[k / geometry.tiling.n_tiles].add(sums[k]);
        are_finite = are_finite && std::isfinite(sums[k].high);
    }
    return are_finite;
}

void ShardedFactored::put_second_max(double* to) const {
    std::fill_n(to, n_second_max(), kNeutral);
    for (const LocalBox& at : boxes_)
        for (std::size_t k = 0; k < at.n; ++k) {
            double& exponent = to[at.box->matrices[k]];
            exponent = std::max(exponent, exponent_of(at.u_sq[k]));
        }
    to[n()] = is_unusable();
    to[n() + 1] = overflows_here();
    to[n() + 2] = is_vague_;
}

void ShardedFactored::take_second_max(const double* from) {
    exponents_.assign(from, from + n());
    is_unusable_ = from[n()] == 1;
    overflows_ = overflows_ || from[n() + 1] == 1;
    is_vague_ = from[n() + 2] == 1;
}

void ShardedFactored::put_second_sum(double* to) const {
    std::fill_n(to, n_second_sum(), 0.0);
    if (!part_.speaks) return;
    for (const LocalBox& at : boxes_)
        for (std::size_t k = 0; k < at.n; ++k) {
            const std::size_t m = at.box->matrices[k];
            double words[kWords];
            put_words(at.u_sq[k], exponents_[m], words);
            for (std::size_t w = 0; w < kWords; ++w) to[m * kWords + w] += words[w];
        }
}

void ShardedFactored::take_second_sum(const double* from) {
    u_sq_.resize(n());
    for (std::size_t m = 0; m < n(); ++m)
        u_sq_[m] = sum_of_words(from + m * kWords, exponents_[m]).value();
    take_u_squares();
}

void ShardedFactored::take_u_squares() {
    mean_of(u_sq_, mean_u_sq_);
    for (double& mean : mean_u_sq_) mean *= grad_sq_scale();
}

Fault ShardedFactored::finish(bool propagate) {
    Fault found = Fault::none;
    if (needs_second_) {
        found = fault();
        if (found == Fault::none && !all_are_finite(mean_u_sq_)) found = Fault::second_moment;
        if (found != Fault::none && !propagate) return found;
        literal_ = literal_ || (found != Fault::none && found != Fault::state_format);
        if (literal_) separable_ = false;
    }
    if (always_second()) separable_ = is_separable();
    find_step_sizes();
    wide_ = !float_will_do();
    return found;
}

void ShardedFactored::find_step_sizes() {
    double u_sq = 0, param_sq = 0;
    for (std::size_t m = 0; m < n(); ++m) {
        const StepSize size =
            clip_and_scale(hyper_, has_momentum(), mean_u_sq_[m], mean_param_sq_[m]);
        descents_[m] = size.descent;
        note(size, m == 0, report_);
        u_sq += mean_u_sq_[m];
        param_sq += mean_param_sq_[m];
    }
    // As one process, which has no use for it elsewhere, and does not measure it.
    const bool is_reported = separable_ || clips();
    report_.rms_u =
        is_reported ? std::sqrt(u_sq / double(n())) : std::numeric_limits<double>::quiet_NaN();
    if (hyper_.scale_parameter) report_.rms_param = std::sqrt(param_sq / double(n()));
    double sum_u_sq = u_sq * n_elements();
    if (std::isnan(u_sq)) {  // as FactoredStep's bound
        sum_u_sq = 0;
        for (const SecondMoment& moment : moments_) {
            const double root = std::max({least_root(moment), hyper_.eps_root, hyper_.root_floor});
            sum_u_sq += moment.row_summary.sum_sq * grad_sq_scale() / (root * root);
        }
    }
    bound(descents_.data(), hyper_.per_matrix ? n() : 1, sum_u_sq, param_sq * n_elements());
}

void ShardedFactored::fill_factors(LocalBox& at, bool wide, bool separable) {
    Resolved& to = at.step->resolved_;
    to.separable = separable;
    to.wide = wide;
    const auto fill = [&](const Axis& axis, const FactorRule& rule, double* factors,
                          std::size_t first) {
        if (wide)
            kernels_.fill_double_factors(axis, rule, 0, axis.size, factors + first);
        else
            kernels_.fill_float_factors(axis, rule, 0, axis.size,
                                        reinterpret_cast<float*>(factors) + first);
    };
    for (std::size_t k = 0; k < at.n; ++k) {
        const std::size_t m = at.box->matrices[k];
        const double otherwise = separable ? 0.0 : 1.0;
        const double weight = separable ? descents_[m].weight : 1.0;
        to.descent[k] = descents_[m];
        fill(rows_of(at, k), {separable, literal_, std::sqrt(moments_[m].mean), otherwise},
             to.row_factor, k * at.rows);
        fill(cols_of(at, k), {separable, literal_, weight, otherwise}, to.col_factor, k * at.cols);
    }
}

void ShardedFactored::prepare_apply() {
    for (LocalBox& at : boxes_) fill_factors(at, wide_, separable_);
}

std::unique_ptr<ShardedTensor> make_sharded_factored(const Tensor& tensor, bool given,
                                                     TensorReport& report,
                                                     const ShardedPlaces& places) {
    switch (tensor.part->layout) {
        case Layout::rows:
        case Layout::cols:
            return make_sharded_lines(tensor, given, report, places);
        case Layout::batch:
            return make_sharded_batch(tensor, given, report, places);
        default:
            return make_sharded_grid(tensor, given, report, places);
    }
}

}  // namespace adafactor
