// A matrix: measure, resolve, apply with the factored second moment.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "layout.hpp"
#include "resolve.hpp"
#include "scratch.hpp"
#include "step.hpp"
#include "threads.hpp"

namespace adafactor {
namespace {

// How measure cuts a gradient into groups of blocks. It depends on the shape alone, and groups are
// added up in order, so no bit depends on the threads.
//
// A block is a panel of whole runs (`owns_outer`) or a tile of all runs (not), so that one axis's
// statistics are final within it while it is in cache. Panels are the better choice until runs are
// long and few.
struct Partition {
    bool owns_outer;
    std::size_t block;   // outer runs, or inner elements, of a block
    std::size_t group;   // the same of a group
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
        p.block = p.owns_outer ? kPanelRows : std::clamp<std::size_t>(kTileElements / outer, 64, 512);
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
constexpr std::size_t kPackedRows = 32, kPackedCols = 256;

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

std::size_t padded(std::size_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// One matrix's step; `P`, `G`: element types of param and grad.
template <class P, class G>
class FactoredStep {
public:
    FactoredStep(const Tensor& tensor, const HyperParameters& hyper, int threads,
                 const Kernels<P, G>& kernels)
        : hyper_(hyper),
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
          threads_(team_size(rows_ * cols_, threads)),
          owns_rows_(partition_.owns_outer != grad_.swapped) {}

    Outcome take(bool propagate) {
        allocate();
        measure();
        Fault fault = resolve_moment();
        const bool literal = fault != Fault::none;
        if (literal && !propagate) return {fault};
        fault = choose_update(literal);
        if (fault != Fault::none && !propagate) return {fault};
        std::memcpy(exp_row_, moment_.rows.running_mean, rows_ * sizeof(double));
        std::memcpy(exp_col_, moment_.cols.running_mean, cols_ * sizeof(double));
        apply();
        return {};
    }

private:
    static constexpr bool kBothFloat =
        std::is_same_v<P, float> && std::is_same_v<G, float>;

    // Everything that may fail does so here, before the first write.
    void allocate() {
        Scratch& scratch = Scratch::of_this_thread();
        scratch.reset();
        moment_.rows = {rows_, scratch.take<double>(rows_), scratch.take<double>(rows_)};
        moment_.cols = {cols_, scratch.take<double>(cols_), scratch.take<double>(cols_)};
        own() = owns_rows_ ? moment_.rows : moment_.cols;
        group_sum_sq_ = scratch.take<double>(partition_.n_groups * partition_.n_cross);
        group_weighted_ = scratch.take<double>(partition_.n_groups * partition_.n_cross);
        tile_sum_ = scratch.take<double>(tiling_.n_tiles);
        row_factor_ = scratch.take<double>(rows_);
        col_factor_ = scratch.take<double>(cols_);

        const std::size_t accumulators = 2 * padded(std::max(partition_.n_cross, partition_.block));
        accumulators_.size = accumulators * sizeof(double);
        packed_.size = 0;
        if (!grad_.has_unit_runs())
            packed_.size = partition_.owns_outer
                               ? packed_panel_rows() * grad_.inner * sizeof(G)
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

    // Beside a float64 param, fp32 sums would be the larger error. Beside an eps this small, squares
    // that underflow in fp32 would matter.
    bool sums_need_double() const { return !kBothFloat || hyper_.eps < 1e-36; }

    void measure() {
        const std::size_t n_param = hyper_.scale_parameter ? tiling_.n_tiles : 0;
        parallel_for(partition_.n_groups + n_param, threads_, [&](std::size_t task, int thread) {
            if (task < partition_.n_groups)
                measure_group(task, thread);
            else
                measure_param(task - partition_.n_groups, thread);
        });
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
            const Rect part = partition_.owns_outer ? Rect{k, 0, n, grad_.inner}
                                                    : Rect{0, k, grad_.outer, n};
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
        Axis& crossed = cross();
        const std::size_t n = partition_.n_cross;
        for (std::size_t g = 1; g < partition_.n_groups; ++g) {
            for (std::size_t k = 0; k < n; ++k) {
                group_sum_sq_[k] += group_sum_sq_[g * n + k];
                group_weighted_[k] += group_weighted_[g * n + k];
            }
        }
        double total = 0;
        for (std::size_t k = 0; k < n; ++k) {
            crossed.sum_sq[k] = group_sum_sq_[k];
            total += group_sum_sq_[k];
            crossed.running_mean[k] =
                hyper_.beta2 * cross_old()[k] +
                (1 - hyper_.beta2) * (group_sum_sq_[k] / double(partition_.n_own) + hyper_.eps);
        }
        moment_.crossed_rows = !owns_rows_;
        moment_.cross_weighted = group_weighted_;
        moment_.mean = mean_of(moment_.rows);

        mean_param_squared_ = hyper_.scale_parameter ? sum_of_tiles() / n_elements() : 1;

        if (!std::isfinite(total)) return Fault::grad;
        if (!std::isfinite(mean_param_squared_)) return Fault::param;
        return is_usable(moment_, hyper_.eps) ? Fault::none : Fault::second_moment;
    }

    // `literal`: something is not finite already; do as IEEE arithmetic does with the formula.
    Fault choose_update(bool literal) {
        const bool clips = std::isfinite(hyper_.clip_threshold);
        bool narrow = kBothFloat && !literal;
        update_.separable =
            !literal && eps_is_lost(moment_, hyper_.eps, kBothFloat ? 27 : 54);
        double mean_u_sq = update_.separable && clips ? mean_u_squared(moment_) : 0;
        if (!std::isfinite(mean_u_sq)) update_.separable = false;
        update_.eps = hyper_.eps;
        update_.row = row_factor_;
        update_.col = col_factor_;
        if (!update_.separable) {
            narrow = narrow && direct_factors(moment_, literal, floats(row_factor_),
                                              floats(col_factor_));
            if (!narrow) direct_factors(moment_, literal, row_factor_, col_factor_);
            update_.wide = !narrow;
            if (clips) mean_u_sq = direct_mean_u_squared();
            if (narrow && !std::isfinite(mean_u_sq)) {
                narrow = false;
                direct_factors(moment_, literal, row_factor_, col_factor_);
                update_.wide = true;
                mean_u_sq = direct_mean_u_squared();
            }
            if (!std::isfinite(mean_u_sq) && !literal) return Fault::second_moment;
        }
        update_.step = step_size(hyper_, mean_u_sq, mean_param_squared_);
        if (update_.separable) {
            narrow = narrow && separable_factors(moment_, update_.step, floats(row_factor_),
                                                 floats(col_factor_));
            if (!narrow) separable_factors(moment_, update_.step, row_factor_, col_factor_);
            update_.wide = !narrow;
        }
        return Fault::none;
    }

    static float* floats(double* place) { return reinterpret_cast<float*>(place); }

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
        parallel_for(tiling_.n_tiles, threads_, [&](std::size_t tile, int thread) {
            char* param_place = packed_.of(thread);
            char* grad_place = param_place + kPackedRows * kPackedCols * sizeof(P);
            const auto apply_part = [&](const Rect& part) {
                const auto param = packs_param ? packed_block<P>(param_, part, param_place)
                                               : block_of<P>(param_, part);
                const auto grad = packs_grad
                                      ? packed_block<const G>(grad_like_param_, part, grad_place)
                                      : block_of<const G>(grad_like_param_, part);
                kernels_.apply(param, grad, update_of(part));
                if (packs_param) scatter(param_place, param_, part);
            };
            if (packs_param || packs_grad)
                for_packed_parts(tiling_[tile], apply_part);
            else
                apply_part(tiling_[tile]);
        });
    }

    double sum_of_tiles() const {
        double sum = 0;
        for (std::size_t t = 0; t < tiling_.n_tiles; ++t) sum += tile_sum_[t];
        return sum;
    }

    double n_elements() const { return double(rows_) * double(cols_); }

    HyperParameters hyper_;
    const Kernels<P, G>& kernels_;
    MatrixView param_, grad_, grad_like_param_;
    Partition partition_;
    Tiling tiling_;
    std::size_t rows_, cols_;
    double *exp_row_, *exp_col_;
    int threads_;
    bool owns_rows_;

    struct PerThread {
        char* data;
        std::size_t size;
        char* of(int thread) const { return data + std::size_t(thread) * size; }
    };

    SecondMoment moment_{};
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
                      int threads, const Kernels<P, G>& kernels) {
    return FactoredStep<P, G>(tensor, hyper, threads, kernels).take(propagate);
}

template Outcome step_factored(const Tensor&, const HyperParameters&, bool, int,
                               const Kernels<float, float>&);
template Outcome step_factored(const Tensor&, const HyperParameters&, bool, int,
                               const Kernels<float, double>&);
template Outcome step_factored(const Tensor&, const HyperParameters&, bool, int,
                               const Kernels<double, float>&);
template Outcome step_factored(const Tensor&, const HyperParameters&, bool, int,
                               const Kernels<double, double>&);

}  // namespace adafactor
