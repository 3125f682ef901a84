// Ranks that have whole rows, or whole columns, of every matrix: these are their own axis, whose
// running means each rank finishes by itself. Of the other, crossed axis the sums over ranks are
// exchanged, with the weighted ones that u needs.
#include <algorithm>
#include <cmath>

#include "engine/sharded_factored.hpp"

namespace adafactor {
namespace {

class ShardedLines final : public ShardedFactored {
public:
    ShardedLines(const Tensor& tensor, bool given, TensorReport& report,
                 const ShardedPlaces& places)
        : ShardedFactored(tensor, given, report, places),
          by_rows_(part_.layout == Layout::rows),
          n_own_(by_rows_ ? part_.n_rows : part_.n_cols),
          n_crossed_(by_rows_ ? part_.n_cols : part_.n_rows) {
        old_row_sums_.resize(n());
        if (given && boxes_.empty()) hold_crossed();
    }

    std::size_t n_sum() const override { return n() * (kSums * kWords + 2 * n_crossed_); }

    void finish_measure(const Team& team) override {
        ShardedFactored::finish_measure(team);
        own_overflows_ = false;  // as it may be measured again with a smaller scale
        if (boxes_.empty()) return;
        own_.resize(n());
        own_old_.assign(n(), {});
        for (std::size_t m = 0; m < n(); ++m) {
            for (std::size_t i = 0; by_rows_ && i < boxes_[0].rows; ++i)
                own_old_[m].add(boxes_[0].old_row[m * boxes_[0].rows + i]);
            own_[m] = kernels_.summarize(own_axis(m));
            own_overflows_ = own_overflows_ || !state_holds(own_axis(m), own_[m]);
        }
    }

    void put_sum(double* to) override {
        std::fill_n(to, n_sum(), 0.0);
        if (!part_.speaks || boxes_.empty()) return;
        for (std::size_t m = 0; m < n(); ++m) {
            const Sums sums = own_sums(m);
            for (std::size_t k = 0; k < kSums; ++k)
                put_words(sums.of[k], exponents_[m * kSums + k], to + (m * kSums + k) * kWords);
            double* const sum_sq = crossed_sums(m, to);
            add_crossed(boxes_[0], m, sum_sq, sum_sq + n_crossed_);
        }
    }

    void begin_apply() override {
        ShardedFactored::begin_apply();
        if (boxes_.empty()) put_crossed();
    }

protected:
    std::size_t n_own_max() const override { return n() * kMaxima + 1; }

    void put_own_max(double* to) const override {
        if (boxes_.empty()) return;
        for (std::size_t m = 0; m < n(); ++m, to += kMaxima) {
            const Sums sums = own_sums(m);
            for (std::size_t k = 0; k < kSums; ++k) to[k] = exponent_of(sums.of[k]);
            to[kSums] = -own_[m].smallest;
            to[kSums + 1] = -own_[m].smallest_live;
            to[kSums + 2] = own_[m].largest_live;
        }
        to[0] = own_overflows_;
    }

    void take_own_max(const double* from) override {
        exponents_.clear();
        extremes_.clear();
        for (std::size_t m = 0; m < n(); ++m, from += kMaxima) {
            exponents_.insert(exponents_.end(), from, from + kSums);
            extremes_.insert(extremes_.end(), from + kSums, from + kMaxima);
        }
        any_own_overflows_ = from[0] == 1;
    }

    void derive(double* sums) override {
        overflows_ = any_own_overflows_;
        for (std::size_t m = 0; m < n(); ++m) {
            double value[kSums];
            for (std::size_t k = 0; k < kSums; ++k)
                value[k] = sum_of_words(sums + (m * kSums + k) * kWords, exponents_[m * kSums + k])
                               .value();
            const double* const extremes = extremes_.data() + m * (kMaxima - kSums);
            const AxisSummary own{value[0], value[1], -extremes[0], -extremes[1], extremes[2]};
            param_sq_[m] = value[2];
            old_row_sums_[m] = value[3];

            const Axis axis = finish_crossed_axis(m, sums);
            const AxisSummary crossed = kernels_.summarize(axis);
            overflows_ = overflows_ || !state_holds(axis, crossed);
            weighted_[m] = kernels_.sum_over_means(axis, crossed_sums(m, sums) + n_crossed_);
            SecondMoment& moment = moments_[m];
            moment.row_summary = by_rows_ ? own : crossed;
            moment.col_summary = by_rows_ ? crossed : own;
            moment.mean = mean_of_rows(moment.row_summary);
        }
    }

    // Running means are linear in the old ones and in sums of squares that are known, and so is the
    // sum over rows of other ranks; but it is rounded otherwise than their own.
    void guess_moments(double* sums) override {
        for (std::size_t m = 0; m < n(); ++m) {
            const Axis axis = finish_crossed_axis(m, sums);
            SecondMoment& moment = moments_[m];
            if (by_rows_) {
                const double squares =
                    moment.row_summary.sum_sq * grad_sq_scale() / double(part_.n_cols);
                const double eps = double(part_.n_rows) * hyper_.eps_squares;
                moment.row_summary.sum =
                    hyper_.beta2 * old_row_sums_[m] + (1 - hyper_.beta2) * (squares + eps);
            } else {
                moment.row_summary = kernels_.summarize(axis);
            }
            moment.mean = mean_of_rows(moment.row_summary);
        }
    }
    // Less than ten roundings apart.
    double mean_margin() const override { return by_rows_ ? std::ldexp(1, -49) : 0; }

private:
    static constexpr std::size_t kSums = 4, kMaxima = kSums + 3;  // of each matrix

    // Over the own axis's lines: of running means, of grad^2; of param^2; of rows' old means.
    struct Sums {
        TwoWords of[kSums];
    };
    Sums own_sums(std::size_t m) const {
        Sums sums;
        sums.of[0] = SumWords{own_[m].sum, own_[m].sum_low};
        sums.of[1] = SumWords{own_[m].sum_sq, own_[m].sum_sq_low};
        if (hyper_.scale_parameter) sums.of[2] = boxes_[0].param_sq[m];
        sums.of[3] = own_old_[m];
        return sums;
    }

    Axis own_axis(std::size_t m) const {
        return by_rows_ ? rows_of(boxes_[0], m) : cols_of(boxes_[0], m);
    }
    Axis crossed_axis(std::size_t m) {
        if (!boxes_.empty()) return by_rows_ ? cols_of(boxes_[0], m) : rows_of(boxes_[0], m);
        return {n_crossed_, crossed_mean_.data() + m * n_crossed_,
                crossed_sq_.data() + m * n_crossed_, hyper_.eps_means};
    }
    // Over ranks: of squares, then weighted.
    double* crossed_sums(std::size_t m, double* sums) const {
        return sums + n() * kSums * kWords + m * 2 * n_crossed_;
    }
    Axis finish_crossed_axis(std::size_t m, double* sums) {
        const Axis axis = crossed_axis(m);
        double* const sum_sq = crossed_sums(m, sums);
        kernels_.add_groups({sum_sq, sum_sq + n_crossed_, 1, moment(), double(n_own_),
                             crossed_old() + m * n_crossed_},
                            0, n_crossed_, axis);
        return axis;
    }
    const double* crossed_old() const {
        if (boxes_.empty()) return crossed_old_.data();
        return by_rows_ ? boxes_[0].old_col : boxes_[0].old_row;
    }

    // A rank without elements has the crossed axis's state all the same, and keeps it up.
    void hold_crossed() {
        const std::size_t size = n() * n_crossed_;
        const void* const state = by_rows_ ? tensor_.exp_col : tensor_.exp_row;
        crossed_mean_.resize(size);
        crossed_sq_.resize(size);
        if (tensor_.state_format == Format::float64)
            crossed_old_.assign(static_cast<const double*>(state),
                                static_cast<const double*>(state) + size);
        else
            crossed_old_.assign(static_cast<const float*>(state),
                                static_cast<const float*>(state) + size);
    }
    void put_crossed() const {
        void* const state = by_rows_ ? tensor_.exp_col : tensor_.exp_row;
        if (tensor_.state_format == Format::float64)
            std::copy(crossed_mean_.begin(), crossed_mean_.end(), static_cast<double*>(state));
        else
            std::transform(crossed_mean_.begin(), crossed_mean_.end(), static_cast<float*>(state),
                           [](double mean) { return float(mean); });
    }

    bool by_rows_;
    std::size_t n_own_, n_crossed_;
    std::vector<AxisSummary> own_;  // of this rank's lines
    std::vector<TwoWords> own_old_;
    std::vector<double> old_row_sums_;  // of all ranks
    bool own_overflows_ = false, any_own_overflows_ = false;
    std::vector<double> exponents_, extremes_;
    std::vector<double> crossed_old_, crossed_mean_, crossed_sq_;  // without a box
};

}  // namespace

std::unique_ptr<ShardedTensor> make_sharded_lines(const Tensor& tensor, bool given,
                                                  TensorReport& report,
                                                  const ShardedPlaces& places) {
    return std::make_unique<ShardedLines>(tensor, given, report, places);
}

}  // namespace adafactor
