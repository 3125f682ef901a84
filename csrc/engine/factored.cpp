// A factored tensor, a matrix or a batch of them: measure, resolve, apply.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#include "dispatch/isa.hpp"
#include "engine/blocks.hpp"
#include "engine/carried.hpp"
#include "engine/resolve.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

std::size_t padded(std::size_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// `P`: element type of param and its first moment, `G`: of grad.
template <class P, class G>
class FactoredStep final : public TensorStep {
public:
    FactoredStep(const Tensor& tensor, TensorReport& report, const KernelTable& table,
                 const Kernels<P, G>& kernels)
        : TensorStep(tensor, report),
          table_(table),
          kernels_(kernels),
          param_(MatrixBatch::along_memory(tensor.param, tensor.row_axis, tensor.col_axis)),
          grad_(MatrixBatch::along_memory(tensor.grad, tensor.row_axis, tensor.col_axis)),
          grad_like_param_(tensor.grad, tensor.row_axis, tensor.col_axis, param_.swapped()),
          m_(has_momentum() ? tensor.m : tensor.param, tensor.row_axis, tensor.col_axis,
             param_.swapped()),
          copy_(has_copy() ? tensor.copy : tensor.param, tensor.row_axis, tensor.col_axis,
                param_.swapped()),
          partition_(Partition::of(grad_[0].outer, grad_[0].inner)),
          tiling_(Tiling::of(param_[0])),
          rows_(std::size_t(tensor.param.shape[tensor.row_axis])),
          cols_(std::size_t(tensor.param.shape[tensor.col_axis])),
          n_matrices_(param_.size()),
          owns_rows_(partition_.owns_outer != grad_.swapped()) {
        interleaved_ = std::max(param_.interleaved(), grad_.interleaved());
        const std::size_t fitting =
            std::clamp<std::size_t>(kTile / (rows_ * cols_), 1, n_matrices_);
        if (fitting > interleaved_) {
            matrices_per_task_ = fitting / interleaved_ * interleaved_;
        } else {
            matrices_per_task_ = interleaved_;
            measure_turns_ = std::max(partition_.n_groups, needs_param_ ? tiling_.n_tiles : 0);
            apply_turns_ = tiling_.n_tiles;
        }
        n_chunks_ = (n_matrices_ + matrices_per_task_ - 1) / matrices_per_task_;

        sums_room_ =
            padded(2 * padded(std::max(partition_.n_cross, partition_.block)) * sizeof(double));
        if (packs_grad())
            packed_room_ = partition_.owns_outer ? packed_panel_rows() * grad_[0].inner * sizeof(G)
                                                 : grad_[0].outer * partition_.block * sizeof(G);
        if (packs())
            packed_room_ =
                std::max(packed_room_, kPackedRows * kPackedCols * (2 * sizeof(P) + sizeof(G)));
    }

    std::size_t room_size() const override { return sums_room_ + packed_room_; }

    void allocate(Scratch& kept, Scratch& passing) override {
        const std::size_t all_rows = n_matrices_ * rows_, all_cols = n_matrices_ * cols_;
        row_mean_ = kept.take<double>(all_rows);
        col_mean_ = kept.take<double>(all_cols);
        row_factor_ = kept.take<double>(all_rows);
        col_factor_ = kept.take<double>(all_cols);
        moves_ = kept.take<Move>(n_matrices_);
        double* const row_sum_sq = passing.take<double>(all_rows);
        double* const col_sum_sq = passing.take<double>(all_cols);
        moments_ = passing.take<SecondMoment>(n_matrices_);
        for (std::size_t m = 0; m < n_matrices_; ++m) {
            const std::size_t row = m * rows_, col = m * cols_;
            moments_[m].rows = {rows_, row_mean_ + row, row_sum_sq + row, hyper_.eps_means};
            moments_[m].cols = {cols_, col_mean_ + col, col_sum_sq + col, hyper_.eps_means};
        }
        const std::size_t group_sums = n_matrices_ * partition_.n_groups * partition_.n_cross;
        group_sum_sq_ = passing.take<double>(group_sums);
        group_weighted_ = passing.take<double>(group_sums);
        tile_sum_ = passing.take<double>(n_tiles());
        if (mean_param_sq_ == nullptr) {
            mean_param_sq_ = kept.take<double>(n_matrices_);
            std::fill_n(mean_param_sq_, n_matrices_, std::numeric_limits<double>::quiet_NaN());
        }
        mean_u_sq_ = passing.take<double>(n_matrices_);
        if (carried_ != nullptr && needs_param_) carried_->expect(tensor_.param, n_tiles());
    }

    std::size_t n_measure_tasks() const override { return n_chunks_ * measure_turns_; }

    // Groups of grad and tiles of param from the same place in turn: what was read last, of both,
    // is still in the outer cache when apply begins there.
    void measure(std::size_t task, char* room) override {
        const std::size_t turn = task % measure_turns_;
        const auto first = [&](std::size_t k, std::size_t n) {
            return (k * n + measure_turns_ - 1) / measure_turns_;
        };
        const std::size_t chunk = task / measure_turns_;
        const std::size_t n_groups = partition_.n_groups, n_tiles = tiling_.n_tiles;
        for (auto k = first(turn, n_groups); k < first(turn + 1, n_groups); ++k)
            measure_group(chunk, k, room);
        if (!needs_param_) return;
        for (auto k = first(turn, n_tiles); k < first(turn + 1, n_tiles); ++k)
            measure_param(chunk, k, room);
    }

    Fault resolve(const Team& team, bool propagate) override {
        if (needs_param_) resolve_param(team);
        needs_param_ = false;
        Fault fault = resolve_moments(team);
        const bool literal = fault != Fault::none;
        if (literal && !propagate) return fault;
        if (!choose_update(team, literal)) {
            fault = Fault::second_moment;
            if (propagate) choose_update(team, true);
        }
        return fault;
    }

    std::size_t n_apply_tasks() const override { return n_chunks_ * apply_turns_; }

    void begin_apply() override {
        std::memcpy(tensor_.exp_row, row_mean_, n_matrices_ * rows_ * sizeof(double));
        std::memcpy(tensor_.exp_col, col_mean_, n_matrices_ * cols_ * sizeof(double));
        written_ = carried_ != nullptr ? carried_->written() : nullptr;
    }

    void apply(std::size_t task, char* room) override {
        const std::size_t chunk = task / apply_turns_;
        for (auto tile = task % apply_turns_; tile < tiling_.n_tiles; tile += apply_turns_)
            apply_tile(chunk, tile, room);
    }

    void end_apply() override {
        if (carried_ != nullptr) carried_->remember();
    }

private:
    static constexpr bool kBothFloat = std::is_same_v<P, float> && std::is_same_v<G, float>;

    // Whether apply works on small parts, which are copied where kernels cannot take them.
    bool packs() const {
        return !grad_like_param_.is_direct() || !param_.is_direct() || !m_.is_direct() ||
               has_copy();
    }

    // Whether measure copies: halves have a kernel for panels only.
    bool packs_grad() const {
        return !grad_.is_direct() && !(grad_.has_unit_runs() && partition_.owns_outer);
    }

    bool is_stored_in_runs() const {
        return kBothFloat && grad_like_param_.has_unit_runs() && param_.has_unit_runs() &&
               m_.has_unit_runs() && copy_.has_unit_runs();
    }

    static Stored stored(const MatrixBatch& batch, std::size_t m, const Rect& part,
                         bool exists = true) {
        if (!exists) return {nullptr, 0, Format::none, 0};
        const MatrixView matrix = batch[m];
        return {matrix.at(part.i, part.j), matrix.outer_stride, matrix.format, matrix.low};
    }

    std::size_t n_tiles() const { return n_matrices_ * tiling_.n_tiles; }
    double n_elements() const { return double(rows_) * double(cols_); }  // of a matrix

    template <class Body>  // body(matrix)
    void for_matrices(std::size_t chunk, const Body& body) const {
        const std::size_t begin = chunk * matrices_per_task_;
        const std::size_t end = std::min(begin + matrices_per_task_, n_matrices_);
        for (std::size_t m = begin; m < end; ++m) body(m);
    }

    // The axis that a block of grad spans, and the one that it does not.
    Axis& own(std::size_t m) { return owns_rows_ ? moments_[m].rows : moments_[m].cols; }
    Axis& cross(std::size_t m) { return owns_rows_ ? moments_[m].cols : moments_[m].rows; }
    const double* own_old(std::size_t m) const {
        return owns_rows_ ? tensor_.exp_row + m * rows_ : tensor_.exp_col + m * cols_;
    }
    const double* cross_old(std::size_t m) const {
        return owns_rows_ ? tensor_.exp_col + m * cols_ : tensor_.exp_row + m * rows_;
    }

    double* group_of(double* sums, std::size_t m, std::size_t group) const {
        return sums + (m * partition_.n_groups + group) * partition_.n_cross;
    }

    std::size_t packed_panel_rows() const {
        return std::clamp<std::size_t>(kTile / (grad_[0].inner * interleaved_), 4, kPanelRows);
    }

    // Beside a float64 param, fp32 sums would be the larger error. Where so little is added to V,
    // squares that underflow in fp32 would matter.
    bool sums_need_double() const {
        return !kBothFloat ||
               hyper_.eps_squares + hyper_.eps_means + hyper_.root_floor * hyper_.root_floor <
                   1e-36;
    }

    void measure_group(std::size_t chunk, std::size_t index, char* room) {
        for_matrices(chunk, [&](std::size_t m) {
            std::fill_n(group_of(group_sum_sq_, m, index), partition_.n_cross, 0.0);
            std::fill_n(group_of(group_weighted_, m, index), partition_.n_cross, 0.0);
        });
        const std::size_t block =
            packs_grad() && partition_.owns_outer ? packed_panel_rows() : partition_.block;
        const std::size_t begin = index * partition_.group;
        const std::size_t end = std::min(begin + partition_.group, partition_.n_own);
        for (std::size_t k = begin; k < end; k += block)
            for_matrices(chunk, [&](std::size_t m) {
                measure_block(m, index, k, std::min(block, end - k), room);
            });
    }

    // Lines [k, k + n) of the owned axis.
    void measure_block(std::size_t m, std::size_t group, std::size_t k, std::size_t n, char* room) {
        Statistics out{};
        out.moment = moment();
        out.wide = sums_need_double();
        out.cross_sum_sq = group_of(group_sum_sq_, m, group);
        out.cross_weighted = group_of(group_weighted_, m, group);
        out.own_old = own_old(m) + k;
        out.own_new = own(m).running_mean + k;
        out.own_sum_sq = own(m).sum_sq + k;
        const MatrixView matrix = grad_[m];
        const Rect part =
            partition_.owns_outer ? Rect{k, 0, n, matrix.inner} : Rect{0, k, matrix.outer, n};
        if (is_half(matrix.format) && !packs_grad()) {
            running_half_kernels(matrix.format)
                .measure_rows(block_of<const Half>(matrix, part), out, room);
            return;
        }
        const auto grad = packs_grad() ? packed_block<const G>(matrix, part, room + sums_room_)
                                       : block_of<const G>(matrix, part);
        (partition_.owns_outer ? kernels_.measure_rows : kernels_.measure_cols)(grad, out, room);
    }

    // Sums what is not carried.
    void measure_param(std::size_t chunk, std::size_t tile, char* room) {
        sum_param(chunk, tile, room, [&](std::size_t m) {
            const std::size_t index = m * tiling_.n_tiles + tile;
            return carried_ == nullptr || carried_->is_unknown(index) ? &tile_sum_[index] : nullptr;
        });
    }

    // The sums of squares of a tile of the matrices for which sum_of(matrix) is not null.
    template <class SumOf>
    void sum_param(std::size_t chunk, std::size_t tile, char* room, const SumOf& sum_of) const {
        const auto add_part = [&](const Rect& part) {
            for_matrices(chunk, [&](std::size_t m) {
                if (double* const sum = sum_of(m)) *sum += squares_of_param(m, part, room);
            });
        };
        for_matrices(chunk, [&](std::size_t m) {
            if (double* const sum = sum_of(m)) *sum = 0;
        });
        if (sums_param_in_place())
            add_part(tiling_[tile]);
        else
            for_packed_parts(tiling_[tile], add_part);
    }

    bool sums_param_in_place() const { return param_.has_unit_runs() && tensor_.param.low == 0; }

    double squares_of_param(std::size_t m, const Rect& part, char* room) const {
        const MatrixView matrix = param_[m];
        if (!sums_param_in_place())
            return kernels_.sum_squares(packed_block<const P>(matrix, part, room + sums_room_));
        if (is_half(matrix.format))
            return running_half_kernels(matrix.format)
                .sum_squares(block_of<const Half>(matrix, part));
        return kernels_.sum_squares(block_of<const P>(matrix, part));
    }

    // Calls body(matrix, the team for it).
    template <class Body>
    void for_each_matrix(const Team& team, const Body& body) const {
        if (n_matrices_ == 1) return body(std::size_t(0), team);
        team.for_tasks(n_chunks_, Order::forwards, [&](std::size_t chunk, int thread, char*) {
            for_matrices(chunk, [&](std::size_t m) { body(m, team.alone(thread)); });
        });
    }

    // The means of squares that tile_sum_ and hyper_.per_matrix ask for.
    void mean_of_tiles(double* mean) const {
        double total = 0;
        for (std::size_t m = 0; m < n_matrices_; ++m) {
            double sum = 0;
            for (std::size_t t = 0; t < tiling_.n_tiles; ++t)
                sum += tile_sum_[m * tiling_.n_tiles + t];
            mean[m] = sum / n_elements();
            total += sum;
        }
        if (!hyper_.per_matrix)
            std::fill_n(mean, n_matrices_, total / (n_elements() * double(n_matrices_)));
    }

    void resolve_param(const Team& team) {
        if (carried_ != nullptr && !carried_->complete(tile_sum_))
            team.for_tasks(n_chunks_ * tiling_.n_tiles, Order::forwards,
                           [&](std::size_t task, int, char* room) {
                               measure_param(task / tiling_.n_tiles, task % tiling_.n_tiles, room);
                           });
        mean_of_tiles(mean_param_sq_);
    }

    // Adds up the groups, finishes the crossed axes and looks whether all is well.
    Fault resolve_moments(const Team& team) {
        for_each_matrix(team, [&](std::size_t m, const Team& by) {
            const CrossSums sums{group_of(group_sum_sq_, m, 0), group_of(group_weighted_, m, 0),
                                 partition_.n_groups,           moment(),
                                 double(partition_.n_own),      cross_old(m)};
            for_parts(by, partition_.n_cross, partition_.n_groups,
                      [&](std::size_t begin, std::size_t end) {
                          table_.add_groups(sums, begin, end, cross(m));
                      });
            SecondMoment& moment = moments_[m];
            moment.row_range = table_.range_of(moment.rows);
            moment.col_range = table_.range_of(moment.cols);
            const double mean = moment.row_range.sum / double(rows_);
            moment.mean = mean < hyper_.mean_floor ? hyper_.mean_floor : mean;
        });
        report_.grad_sq = 0;
        bool usable = true;
        for (std::size_t m = 0; m < n_matrices_; ++m) {
            report_.grad_sq += moments_[m].row_range.sum_sq;
            usable = usable && is_usable(moments_[m], hyper_) &&
                     (!hyper_.scale_parameter || std::isfinite(mean_param_sq_[m]));
        }
        if (usable) return Fault::none;
        for (std::size_t m = 0; m < n_matrices_; ++m)
            if (!std::isfinite(moments_[m].row_range.sum_sq) ||
                !std::isfinite(moments_[m].col_range.sum_sq))
                return Fault::grad;
        for (std::size_t m = 0; m < n_matrices_; ++m)
            if (hyper_.scale_parameter && !std::isfinite(mean_param_sq_[m])) return Fault::param;
        return Fault::second_moment;
    }

    template <class Test>  // test(moment)
    bool all_moments(const Test& test) const {
        return std::all_of(moments_, moments_ + n_matrices_, test);
    }

    bool u_is_finite() const {
        return std::all_of(mean_u_sq_, mean_u_sq_ + n_matrices_,
                           [](double x) { return std::isfinite(x); });
    }

    // RMS(u)^2 in the separable form: one dot product. Not finite if its terms left the range that
    // they were summed in.
    void mean_separable_u(const Team& team) {
        for_each_matrix(team, [&](std::size_t m, const Team&) {
            mean_u_sq_[m] =
                moments_[m].mean * table_.sum_over_means(cross(m), group_of(group_weighted_, m, 0));
        });
        double total = 0;
        for (std::size_t m = 0; m < n_matrices_; ++m) total += mean_u_sq_[m];
        for (std::size_t m = 0; m < n_matrices_; ++m)
            mean_u_sq_[m] = (hyper_.per_matrix ? mean_u_sq_[m] / n_elements()
                                               : total / (n_elements() * double(n_matrices_))) *
                            grad_sq_scale();
    }

    void mean_direct_u(const Team& team) {
        team.for_tasks(n_tiles(), Order::forwards, [&](std::size_t index, int, char* room) {
            const std::size_t m = index / tiling_.n_tiles;
            const Rect tile = tiling_[index % tiling_.n_tiles];
            const MatrixView matrix = grad_like_param_[m];
            if (grad_like_param_.is_direct()) {
                tile_sum_[index] =
                    kernels_.sum_u_squares(block_of<const G>(matrix, tile), update_of(m, tile));
                return;
            }
            tile_sum_[index] = 0;
            for_packed_parts(tile, [&](const Rect& part) {
                tile_sum_[index] += kernels_.sum_u_squares(
                    packed_block<const G>(matrix, part, room + sums_room_), update_of(m, part));
            });
        });
        mean_of_tiles(mean_u_sq_);
        for (std::size_t m = 0; m < n_matrices_; ++m) mean_u_sq_[m] *= grad_sq_scale();
    }

    // Finds the form, the moves and the factors; false if u is not finite. `literal`: something is
    // not finite already, do as IEEE arithmetic does with the formula.
    bool choose_update(const Team& team, bool literal) {
        const bool clips = std::isfinite(hyper_.clip_threshold);
        std::fill_n(mean_u_sq_, n_matrices_, std::numeric_limits<double>::quiet_NaN());
        std::fill_n(moves_, n_matrices_, Move{});
        form_ = Form::direct;
        if (!literal && all_moments([&](const SecondMoment& moment) {
                return eps_is_lost(moment, hyper_, kBothFloat ? 27 : 54);
            })) {
            mean_separable_u(team);
            if (!clips || u_is_finite()) form_ = Form::separable;
        }
        if (form_ == Form::direct && clips) {
            wide_ = !fit_float(literal);
            fill_factors(team, literal);
            mean_direct_u(team);
            if (!wide_ && !u_is_finite()) {
                wide_ = true;
                fill_factors(team, literal);
                mean_direct_u(team);
            }
            if (!u_is_finite() && !literal) return false;
        }
        set_moves();
        wide_ = !fit_float(literal);
        fill_factors(team, literal);
        return true;
    }

    void set_moves() {
        double u_sq = 0, param_sq = 0;
        for (std::size_t m = 0; m < n_matrices_; ++m) {
            const StepSize size =
                step_size(hyper_, has_momentum(), mean_u_sq_[m], mean_param_sq_[m]);
            moves_[m] = size.move;
            u_sq += mean_u_sq_[m];
            param_sq += mean_param_sq_[m];
            if (m > 0 && !(size.step_size > report_.step_size)) continue;
            report_.step_size = size.step_size;
            report_.clip_divisor = size.divisor;
        }
        const double n = double(n_matrices_);
        report_.rms_u = std::sqrt(u_sq / n);
        if (hyper_.scale_parameter) report_.rms_param = std::sqrt(param_sq / n);
    }

    bool fit_float(bool literal) const {
        if (!kBothFloat || literal) return false;
        for (std::size_t m = 0; m < n_matrices_; ++m)
            if (!factors_fit_float(moments_[m], form_, moves_[m], hyper_)) return false;
        return true;
    }

    void fill_factors(const Team& team, bool literal) {
        for_each_matrix(team, [&](std::size_t m, const Team& by) {
            const SecondMoment& moment = moments_[m];
            fill_axis(by, moment.rows, row_rule(moment, form_, literal), row_factor_, m * rows_);
            fill_axis(by, moment.cols, col_rule(form_, literal, moves_[m].weight), col_factor_,
                      m * cols_);
        });
    }

    void fill_axis(const Team& team, const Axis& axis, const FactorRule& rule, double* factors,
                   std::size_t first) {
        for_parts(team, axis.size, 1, [&](std::size_t begin, std::size_t end) {
            if (wide_)
                table_.fill_double_factors(axis, rule, begin, end, factors + first);
            else
                table_.fill_float_factors(axis, rule, begin, end,
                                          reinterpret_cast<float*>(factors) + first);
        });
    }

    // Cuts work on the numbers of one axis, of which each costs much more than an element.
    template <class Body>  // body(begin, end)
    static void for_parts(const Team& team, std::size_t size, std::size_t cost, const Body& body) {
        constexpr std::size_t part = 1024;
        parallel_for((size + part - 1) / part, team_size(8 * size * cost, team.threads()),
                     [&](std::size_t k, int) { body(k * part, std::min((k + 1) * part, size)); });
    }

    // For a part of a matrix, in param's order.
    Update update_of(std::size_t m, const Rect& part) const {
        const std::size_t item = wide_ ? sizeof(double) : sizeof(float);
        const auto from = [item](const double* factors, std::size_t k) {
            return static_cast<const void*>(reinterpret_cast<const char*>(factors) + k * item);
        };
        const std::size_t row = m * rows_ + (param_.swapped() ? part.j : part.i);
        const std::size_t col = m * cols_ + (param_.swapped() ? part.i : part.j);
        const void* const rows = from(row_factor_, row);
        const void* const cols = from(col_factor_, col);
        return {form_ == Form::separable,
                wide_,
                param_.swapped() ? cols : rows,
                param_.swapped() ? rows : cols,
                moves_[m],
                hyper_.eps_root,
                hyper_.root_floor,
                written_ != nullptr && !packs()};
    }

    Rounding rounding_of(std::size_t m, const Rect& part) const {
        const std::size_t outer = param_[0].outer;
        const std::uint64_t row_step = numbered(param_[0].inner);
        return rounding((std::uint64_t(m) * outer + part.i) * row_step + part.j, row_step);
    }

    // Returns the sum of squares of what it wrote, if that is asked for.
    double apply_part(std::size_t m, const Rect& part, char* room) const {
        const bool packs_param = !param_.is_direct();
        const bool packs_m = has_momentum() && !m_.is_direct();
        char* const param_place = room + sums_room_;
        char* const m_place = param_place + kPackedRows * kPackedCols * sizeof(P);
        char* const grad_place = m_place + kPackedRows * kPackedCols * sizeof(P);
        const auto param = packs_param ? packed_block<P>(param_[m], part, param_place)
                                       : block_of<P>(param_[m], part);
        const auto grad = grad_like_param_.is_direct()
                              ? block_of<const G>(grad_like_param_[m], part)
                              : packed_block<const G>(grad_like_param_[m], part, grad_place);
        const auto first_moment = packs_m          ? packed_block<P>(m_[m], part, m_place)
                                  : has_momentum() ? block_of<P>(m_[m], part)
                                                   : Block<P>{};
        const double sum_sq = kernels_.apply(param, first_moment, grad, update_of(m, part));
        if (packs_param) scatter(param_place, param_[m], part, rounding_of(m, part));
        if (packs_m) scatter(m_place, m_[m], part);
        if constexpr (std::is_same_v<P, float>) {
            if (has_copy())
                narrow({param.data, param.stride, param.rows, param.cols}, copy_[m], part,
                       rounding_of(m, part));
        }
        return sum_sq;
    }

    void apply_tile(std::size_t chunk, std::size_t index, char* room) {
        const Rect tile = tiling_[index];
        const auto written = [&](std::size_t m) {
            return written_ != nullptr ? &written_[m * tiling_.n_tiles + index] : nullptr;
        };
        const auto apply_to_all = [&](const Rect& part) {
            for_matrices(chunk, [&](std::size_t m) {
                const double sum_sq = apply_part(m, part, room);
                if (double* const sum = written(m)) *sum = sum_sq;
            });
        };
        if (!packs()) return apply_to_all(tile);
        if (is_stored_in_runs() && !wide_)
            for_matrices(chunk, [&](std::size_t m) {
                table_.apply_stored({stored(param_, m, tile), stored(m_, m, tile, has_momentum()),
                                     stored(grad_like_param_, m, tile),
                                     stored(copy_, m, tile, has_copy()), tile.rows, tile.cols},
                                    update_of(m, tile), rounding_of(m, tile));
            });
        else
            for_packed_parts(tile, apply_to_all);
        // What was written in parts, and perhaps rounded, is read as the next step would.
        if (written_ != nullptr) sum_param(chunk, index, room, written);
    }

    const KernelTable& table_;
    const Kernels<P, G>& kernels_;
    MatrixBatch param_, grad_, grad_like_param_;
    MatrixBatch m_, copy_;  // param_ again where there is none
    Partition partition_;   // of each matrix of grad
    Tiling tiling_;         // of each matrix of param
    std::size_t rows_, cols_, n_matrices_;
    bool owns_rows_;

    // Tasks of about kTile elements: chunks of small matrices, or turns within a large one and
    // those that are interleaved with it.
    std::size_t interleaved_, matrices_per_task_, n_chunks_;
    std::size_t measure_turns_ = 1, apply_turns_ = 1;
    std::size_t sums_room_ = 0, packed_room_ = 0;  // bytes

    Form form_ = Form::direct;
    bool wide_ = true;
    double *row_mean_, *col_mean_;      // (n_matrices, rows), (n_matrices, cols)
    double *row_factor_, *col_factor_;  // the same; of floats unless wide_
    Move* moves_;                       // (n_matrices,)
    double* mean_param_sq_ = nullptr;   // (n_matrices,), of the matrix or of all
    double* written_ = nullptr;         // (n_tiles,) sums that are carried to the next step
    // Until resolve is done:
    SecondMoment* moments_;                   // (n_matrices,)
    double *group_sum_sq_, *group_weighted_;  // (n_matrices, n_groups, n_cross)
    double* tile_sum_;                        // (n_matrices, n_tiles)
    double* mean_u_sq_;                       // (n_matrices,), of the matrix or of all
};

}  // namespace

template <class P, class G>
TensorStep* make_factored_step(const Tensor& tensor, TensorReport& report, Scratch& kept,
                               const KernelTable& table, const Kernels<P, G>& kernels) {
    return new (kept.take<FactoredStep<P, G>>(1))
        FactoredStep<P, G>(tensor, report, table, kernels);
}

#define ADAFACTOR_INSTANTIATE(P, G)                                                 \
    template TensorStep* make_factored_step(const Tensor&, TensorReport&, Scratch&, \
                                            const KernelTable&, const Kernels<P, G>&);
ADAFACTOR_FOR_EACH_PAIR(ADAFACTOR_INSTANTIATE)

}  // namespace adafactor
