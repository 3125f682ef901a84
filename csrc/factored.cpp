// A matrix: measure, resolve, apply with the factored second moment.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "blocks.hpp"
#include "carried.hpp"
#include "resolve.hpp"
#include "scratch.hpp"
#include "step.hpp"
#include "threads.hpp"

namespace adafactor {
namespace {

std::size_t padded(std::size_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// One matrix's step; `P`, `G`: element types of param and grad.
template <class P, class G>
class FactoredStep {
public:
    FactoredStep(const Tensor& tensor, const HyperParameters& hyper, int threads,
                 const KernelTable& table, const Kernels<P, G>& kernels)
        : tensor_(tensor),
          hyper_(hyper),
          table_(table),
          kernels_(kernels),
          param_(along_memory(tensor.param)),
          grad_(along_memory(tensor.grad)),
          grad_like_param_(matrix_view(tensor.grad, param_.swapped)),
          partition_(Partition::of(grad_.outer, grad_.inner)),
          tiling_(Tiling::of(param_)),
          rows_(std::size_t(tensor.param.shape[0])),
          cols_(std::size_t(tensor.param.shape[1])),
          exp_row_(tensor.exp_row),
          exp_col_(tensor.exp_col),
          carried_(tensor.carried),
          threads_(team_size(rows_ * cols_, threads)),
          owns_rows_(partition_.owns_outer != grad_.swapped) {}

    Outcome take(bool propagate) {
        allocate();
        measure();
        const Fault fault = resolve_moment();
        const bool literal = fault != Fault::none;
        if (literal && !propagate) return {fault};
        if (!choose_update(literal)) {
            if (!propagate) return {Fault::second_moment};
            choose_update(true);
        }
        std::memcpy(exp_row_, moment_.rows.running_mean, rows_ * sizeof(double));
        std::memcpy(exp_col_, moment_.cols.running_mean, cols_ * sizeof(double));
        apply();
        return {};
    }

private:
    static constexpr bool kBothFloat = std::is_same_v<P, float> && std::is_same_v<G, float>;

    // Everything that may fail does so here, before the first write.
    void allocate() {
        Scratch& scratch = Scratch::of_this_thread();
        scratch.reset();
        moment_.rows = {rows_, scratch.take<double>(rows_), scratch.take<double>(rows_)};
        moment_.cols = {cols_, scratch.take<double>(cols_), scratch.take<double>(cols_)};
        group_sum_sq_ = scratch.take<double>(partition_.n_groups * partition_.n_cross);
        group_weighted_ = scratch.take<double>(partition_.n_groups * partition_.n_cross);
        tile_sum_ = scratch.take<double>(tiling_.n_tiles);
        if (carried_ != nullptr) carried_->expect(tensor_.param, tiling_.n_tiles);
        row_factor_ = scratch.take<double>(rows_);
        col_factor_ = scratch.take<double>(cols_);

        const std::size_t accumulators = 2 * padded(std::max(partition_.n_cross, partition_.block));
        accumulators_.size = accumulators * sizeof(double);
        packed_.size = 0;
        if (!grad_.has_unit_runs())
            packed_.size = partition_.owns_outer ? packed_panel_rows() * grad_.inner * sizeof(G)
                                                 : grad_.outer * partition_.block * sizeof(G);
        if (!grad_like_param_.has_unit_runs() || !param_.has_unit_runs())
            packed_.size =
                std::max(packed_.size, kPackedRows * kPackedCols * (sizeof(P) + sizeof(G)));
        accumulators_.size = padded(accumulators_.size);
        packed_.size = padded(packed_.size);
        accumulators_.data = scratch.take<char>(accumulators_.size * std::size_t(threads_));
        packed_.data = scratch.take<char>(packed_.size * std::size_t(threads_));
    }

    Axis& own() { return owns_rows_ ? moment_.rows : moment_.cols; }
    Axis& cross() { return owns_rows_ ? moment_.cols : moment_.rows; }
    const double* own_old() const { return owns_rows_ ? exp_row_ : exp_col_; }
    const double* cross_old() const { return owns_rows_ ? exp_col_ : exp_row_; }

    std::size_t packed_panel_rows() const {
        return std::clamp<std::size_t>(kTile / grad_.inner, 4, kPanelRows);
    }

    // Beside a float64 param, fp32 sums would be the larger error. Beside an eps this small,
    // squares that underflow in fp32 would matter.
    bool sums_need_double() const { return !kBothFloat || hyper_.eps < 1e-36; }

    // Groups of grad and tiles of param from the same place in turn: what was read last, of both,
    // is still in the outer cache when apply begins there.
    void measure() {
        const std::size_t n_groups = partition_.n_groups;
        const std::size_t n_tiles = hyper_.scale_parameter ? tiling_.n_tiles : 0;
        const std::size_t n_turns = std::max(n_groups, n_tiles);
        const auto first = [n_turns](std::size_t turn, std::size_t n) {
            return (turn * n + n_turns - 1) / n_turns;
        };
        parallel_for(n_turns, threads_, [&](std::size_t turn, int thread) {
            for (auto k = first(turn, n_groups); k < first(turn + 1, n_groups); ++k)
                measure_group(k, thread);
            for (auto k = first(turn, n_tiles); k < first(turn + 1, n_tiles); ++k)
                if (carried_ == nullptr || carried_->is_unknown(k)) measure_param(k, thread);
        });
        if (carried_ != nullptr && !carried_->complete(tile_sum_))
            parallel_for(n_tiles, threads_,
                         [&](std::size_t tile, int thread) { measure_param(tile, thread); });
    }

    void measure_group(std::size_t index, int thread) {
        Statistics out{};
        out.beta2 = hyper_.beta2;
        out.eps = hyper_.eps;
        out.wide = sums_need_double();
        out.cross_sum_sq = group_sum_sq_ + index * partition_.n_cross;
        out.cross_weighted = group_weighted_ + index * partition_.n_cross;
        std::fill_n(out.cross_sum_sq, partition_.n_cross, 0.0);
        std::fill_n(out.cross_weighted, partition_.n_cross, 0.0);

        const bool packs = !grad_.has_unit_runs();
        const std::size_t block =
            packs && partition_.owns_outer ? packed_panel_rows() : partition_.block;
        const std::size_t begin = index * partition_.group;
        const std::size_t end = std::min(begin + partition_.group, partition_.n_own);
        for (std::size_t k = begin; k < end; k += block) {
            const std::size_t n = std::min(block, end - k);
            const Rect part =
                partition_.owns_outer ? Rect{k, 0, n, grad_.inner} : Rect{0, k, grad_.outer, n};
            out.own_old = own_old() + k;
            out.own_new = own().running_mean + k;
            out.own_sum_sq = own().sum_sq + k;
            const auto grad = packs ? packed_block<const G>(grad_, part, packed_.of(thread))
                                    : block_of<const G>(grad_, part);
            (partition_.owns_outer ? kernels_.measure_rows : kernels_.measure_cols)(
                grad, out, accumulators_.of(thread));
        }
    }

    void measure_param(std::size_t tile, int thread) {
        if (param_.has_unit_runs()) {
            tile_sum_[tile] = kernels_.sum_squares(block_of<const P>(param_, tiling_[tile]));
            return;
        }
        tile_sum_[tile] = 0;
        for_packed_parts(tiling_[tile], [&](const Rect& part) {
            tile_sum_[tile] +=
                kernels_.sum_squares(packed_block<const P>(param_, part, packed_.of(thread)));
        });
    }

    // Adds up the groups, finishes the crossed axis and looks whether all is well.
    Fault resolve_moment() {
        const CrossSums sums{group_sum_sq_, group_weighted_, partition_.n_groups,
                             hyper_.beta2,  hyper_.eps,      double(partition_.n_own),
                             cross_old()};
        for_parts(partition_.n_cross, partition_.n_groups, [&](std::size_t begin, std::size_t end) {
            table_.add_groups(sums, begin, end, cross());
        });
        moment_.row_range = table_.range_of(moment_.rows);
        moment_.col_range = table_.range_of(moment_.cols);
        moment_.mean = moment_.row_range.sum / double(rows_);
        mean_param_squared_ = hyper_.scale_parameter ? sum_of_tiles() / n_elements() : 1;

        if (is_usable(moment_, hyper_.eps) && std::isfinite(mean_param_squared_))
            return Fault::none;
        const auto is_finite = [](const Axis& axis) {
            return std::all_of(axis.sum_sq, axis.sum_sq + axis.size,
                               [](double x) { return std::isfinite(x); });
        };
        if (!is_finite(moment_.rows) || !is_finite(moment_.cols)) return Fault::grad;
        return std::isfinite(mean_param_squared_) ? Fault::second_moment : Fault::param;
    }

    // RMS(u)^2 in the separable form: one dot product. Not finite if its terms left the range that
    // they were summed in.
    double separable_mean_u_squared() {
        return moment_.mean * table_.sum_over_means(cross(), group_weighted_) / n_elements();
    }

    // Finds the form, the step and the factors; false if u is not finite. `literal`: something is
    // not finite already, do as IEEE arithmetic does with the formula.
    bool choose_update(bool literal) {
        const bool clips = std::isfinite(hyper_.clip_threshold);
        double mean_u_sq = 0;
        form_ = Form::direct;
        if (!literal && eps_is_lost(moment_, hyper_.eps, kBothFloat ? 27 : 54)) {
            mean_u_sq = clips ? separable_mean_u_squared() : 0;
            if (std::isfinite(mean_u_sq)) form_ = Form::separable;
        }
        update_ = {form_ == Form::separable, true, row_factor_, col_factor_, 0, hyper_.eps, false};
        if (form_ == Form::direct && clips) {
            update_.wide = !fits_float(literal, 0);
            fill_factors(literal);
            mean_u_sq = direct_mean_u_squared();
            if (!update_.wide && !std::isfinite(mean_u_sq)) {
                update_.wide = true;
                fill_factors(literal);
                mean_u_sq = direct_mean_u_squared();
            }
            if (!std::isfinite(mean_u_sq) && !literal) return false;
        }
        update_.step = step_size(hyper_, mean_u_sq, mean_param_squared_);
        update_.wide = !fits_float(literal, update_.step);
        fill_factors(literal);
        return true;
    }

    bool fits_float(bool literal, double step) const {
        return kBothFloat && !literal && factors_fit_float(moment_, form_, step, hyper_.eps);
    }

    void fill_factors(bool literal) {
        fill_axis(moment_.rows, row_rule(moment_, form_, literal), row_factor_);
        fill_axis(moment_.cols, col_rule(form_, literal, update_.step), col_factor_);
    }

    void fill_axis(const Axis& axis, const FactorRule& rule, double* out) {
        for_parts(axis.size, 1, [&](std::size_t begin, std::size_t end) {
            if (update_.wide)
                table_.fill_double_factors(axis, rule, begin, end, out);
            else
                table_.fill_float_factors(axis, rule, begin, end, reinterpret_cast<float*>(out));
        });
    }

    // Cuts work on the numbers of one axis, of which each costs much more than an element.
    template <class Body>  // body(begin, end)
    void for_parts(std::size_t size, std::size_t cost, const Body& body) {
        constexpr std::size_t part = 1024;
        const int team = std::min(threads_, team_size(8 * size * cost, threads_));
        parallel_for((size + part - 1) / part, team,
                     [&](std::size_t k, int) { body(k * part, std::min((k + 1) * part, size)); });
    }

    // The factors of a part of the matrix, in param's order.
    Update update_of(const Rect& part) const {
        const std::size_t item = update_.wide ? sizeof(double) : sizeof(float);
        const auto from = [item](const void* factors, std::size_t k) {
            return static_cast<const void*>(static_cast<const char*>(factors) + k * item);
        };
        Update update = update_;
        update.row = from(param_.swapped ? update_.col : update_.row, part.i);
        update.col = from(param_.swapped ? update_.row : update_.col, part.j);
        return update;
    }

    double direct_mean_u_squared() {
        parallel_for(tiling_.n_tiles, threads_, [&](std::size_t tile, int thread) {
            if (grad_like_param_.has_unit_runs()) {
                tile_sum_[tile] = kernels_.sum_u_squares(
                    block_of<const G>(grad_like_param_, tiling_[tile]), update_of(tiling_[tile]));
                return;
            }
            tile_sum_[tile] = 0;
            for_packed_parts(tiling_[tile], [&](const Rect& part) {
                tile_sum_[tile] += kernels_.sum_u_squares(
                    packed_block<const G>(grad_like_param_, part, packed_.of(thread)),
                    update_of(part));
            });
        });
        return sum_of_tiles() / n_elements();
    }

    void apply() {
        const bool packs_param = !param_.has_unit_runs();
        const bool packs_grad = !grad_like_param_.has_unit_runs();
        double* const written = carried_ != nullptr ? carried_->written() : nullptr;
        update_.sums_param = carried_ != nullptr;
        // Backwards: see measure().
        parallel_for(
            tiling_.n_tiles, threads_, Order::backwards, [&](std::size_t index, int thread) {
                const Rect tile = tiling_[index];
                char* param_place = packed_.of(thread);
                char* grad_place = param_place + kPackedRows * kPackedCols * sizeof(P);
                const auto apply_part = [&](const Rect& part) {
                    const auto param = packs_param ? packed_block<P>(param_, part, param_place)
                                                   : block_of<P>(param_, part);
                    const auto grad =
                        packs_grad ? packed_block<const G>(grad_like_param_, part, grad_place)
                                   : block_of<const G>(grad_like_param_, part);
                    const double sum_sq = kernels_.apply(param, grad, update_of(part));
                    if (packs_param) scatter(param_place, param_, part);
                    return sum_sq;
                };
                double sum_sq = 0;
                if (packs_param || packs_grad)
                    for_packed_parts(tile, [&](const Rect& part) { sum_sq += apply_part(part); });
                else
                    sum_sq = apply_part(tile);
                if (carried_ == nullptr) return;
                // Of a tile that was written in parts but is read as a whole, the parts do not
                // tell.
                const bool as_measured = packs_param || !packs_grad;
                written[index] =
                    as_measured ? sum_sq : kernels_.sum_squares(block_of<const P>(param_, tile));
            });
        if (carried_ != nullptr) carried_->remember();
    }

    double sum_of_tiles() const {
        double sum = 0;
        for (std::size_t t = 0; t < tiling_.n_tiles; ++t) sum += tile_sum_[t];
        return sum;
    }

    double n_elements() const { return double(rows_) * double(cols_); }

    const Tensor& tensor_;
    HyperParameters hyper_;
    const KernelTable& table_;
    const Kernels<P, G>& kernels_;
    MatrixView param_, grad_, grad_like_param_;
    Partition partition_;
    Tiling tiling_;
    std::size_t rows_, cols_;
    double *exp_row_, *exp_col_;
    CarriedSquares* carried_;  // null if RMS(param) is measured, or not needed
    int threads_;
    bool owns_rows_;

    struct PerThread {
        char* data;
        std::size_t size;
        char* of(int thread) const { return data + std::size_t(thread) * size; }
    };

    SecondMoment moment_{};
    Form form_ = Form::direct;
    Update update_{};
    double mean_param_squared_ = 0;
    double *group_sum_sq_, *group_weighted_;  // (n_groups, n_cross)
    double* tile_sum_;                        // (n_tiles,)
    double *row_factor_, *col_factor_;        // room for doubles, floats unless the update is wide
    PerThread accumulators_, packed_;
};

}  // namespace

template <class P, class G>
Outcome step_factored(const Tensor& tensor, const HyperParameters& hyper, bool propagate,
                      int threads, const KernelTable& table, const Kernels<P, G>& kernels) {
    return FactoredStep<P, G>(tensor, hyper, threads, table, kernels).take(propagate);
}

#define ADAFACTOR_INSTANTIATE(P, G)                                                  \
    template Outcome step_factored(const Tensor&, const HyperParameters&, bool, int, \
                                   const KernelTable&, const Kernels<P, G>&);
ADAFACTOR_FOR_EACH_PAIR(ADAFACTOR_INSTANTIATE)

}  // namespace adafactor
