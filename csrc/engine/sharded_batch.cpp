// Ranks that have whole matrices: each finishes its own, and tells the others of every one a few
// numbers, as maxima to which only who has the matrix adds more than nothing.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/sharded_factored.hpp"

namespace adafactor {
namespace {

class ShardedBatch final : public ShardedFactored {
public:
    using ShardedFactored::ShardedFactored;

    std::size_t n_sum() const override { return 0; }
    void put_sum(double*) override {}
    std::size_t bucket_length() const override { return n_own_max(); }

    void finish_measure(const Team& team) override {
        ShardedFactored::finish_measure(team);
        own_overflows_ = false;  // as it may be measured again with a smaller scale
        told_.clear();
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) {
                const double* const weighted = finish_crossed(at, k);
                const Axis rows = rows_of(at, k), cols = cols_of(at, k);
                const AxisSummary of_rows = kernels_.summarize(rows);
                const AxisSummary of_cols = kernels_.summarize(cols);
                own_overflows_ =
                    own_overflows_ || !state_holds(rows, of_rows) || !state_holds(cols, of_cols);
                tell(of_rows);
                tell(of_cols);
                tell(kernels_.sum_over_means(owns_rows(at) ? cols : rows, weighted));
                tell(hyper_.scale_parameter ? at.param_sq[k].value() : 0);
            }
    }

protected:
    std::size_t n_own_max() const override { return n() * kNumbers + 1; }

    void put_own_max(double* to) const override {
        const double* told = told_.data();
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k, told += kNumbers)
                std::copy_n(told, kNumbers, to + at.box->matrices[k] * kNumbers);
        to[n() * kNumbers] = own_overflows_;
    }

    void take_own_max(const double* from) override {
        heard_.assign(from, from + n() * kNumbers);
        any_overflows_ = from[n() * kNumbers] == 1;
    }

    void derive(double*) override {
        overflows_ = any_overflows_;
        for (std::size_t m = 0; m < n(); ++m) {
            const double* const of = heard_.data() + m * kNumbers;
            take_moment(m, of);
            weighted_[m] = told(of[10]);
            param_sq_[m] = told(of[11]);
        }
    }

    void guess_moments(double*) override {
        const double* told = told_.data();
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k, told += kNumbers)
                take_moment(at.box->matrices[k], told);
    }

private:
    static constexpr std::size_t kNumbers = 12;  // of each matrix

    // A maximum carries no nan: an infinity stands for one, and the largest double for an infinity.
    static constexpr double kInfinite = std::numeric_limits<double>::max();
    void tell(double x) {
        told_.push_back(std::isnan(x) ? for_maximum(x) : std::min(x, kInfinite));
    }
    static double told(double x) {
        if (x < kInfinite) return x;
        return x > kInfinite ? std::numeric_limits<double>::quiet_NaN()
                             : std::numeric_limits<double>::infinity();
    }
    void tell(const AxisSummary& of) {
        for (const double x : {of.sum, of.sum_sq, -of.smallest, -of.smallest_live, of.largest_live})
            tell(x);
    }

    void take_moment(std::size_t m, const double* of) {
        const auto summary = [](const double* x) {
            return AxisSummary{told(x[0]), told(x[1]), -told(x[2]), -told(x[3]), told(x[4])};
        };
        SecondMoment& moment = moments_[m];
        moment.row_summary = summary(of);
        moment.col_summary = summary(of + 5);
        moment.mean = mean_of_rows(moment.row_summary);
    }

    std::vector<double> told_, heard_;
    bool own_overflows_ = false, any_overflows_ = false;
};

}  // namespace

std::unique_ptr<ShardedTensor> make_sharded_batch(const Tensor& tensor, bool given,
                                                  TensorReport& report,
                                                  const ShardedPlaces& places) {
    return std::make_unique<ShardedBatch>(tensor, given, report, places);
}

}  // namespace adafactor
