// Any boxes of a matrix: what is exchanged, and what is made of it. sharded_exact.cpp adds up
// otherwise.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/sharded_factored.hpp"

namespace adafactor {

// Neither axis is known before the exchange, which sums both, so that u is measured in one more
// sweep, and its sum exchanged. Each line of the state is spoken for by the box that has its first
// element.
class ShardedGrid : public ShardedFactored {
public:
    using ShardedFactored::ShardedFactored;

    std::size_t n_sum() const override {
        return n() * (kSums * kWords + part_.n_rows + part_.n_cols);
    }

    void finish_measure(const Team& team) override {
        ShardedFactored::finish_measure(team);
        if (!old_.empty()) return;  // measured again, with the same state
        old_.resize(n());
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) {
                OfMatrix& old = old_[at.box->matrices[k]];
                old.rows.add(at.old_row + k * at.rows, at.rows);
                old.cols.add(at.old_col + k * at.cols, at.cols);
                if (at.box->col == 0)
                    for (std::size_t i = 0; i < at.rows; ++i)
                        old.sum.add(at.old_row[k * at.rows + i]);
                if (hyper_.scale_parameter) old.param_sq.add(at.param_sq[k]);
            }
    }

    void put_sum(double* to) const override {
        std::fill_n(to, n_sum(), 0.0);
        if (!part_.speaks) return;
        for (std::size_t m = 0; m < n(); ++m) {
            put_words(old_[m].sum, exponents_[m * kSums], to + m * kSums * kWords);
            put_words(old_[m].param_sq, exponents_[m * kSums + 1], to + (m * kSums + 1) * kWords);
        }
        double* const lines = to + n() * kSums * kWords;
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) {
                const std::size_t m = at.box->matrices[k];
                double* const rows = row_sums(lines, m) + at.box->row;
                double* const cols = col_sums(lines, m) + at.box->col;
                const bool by_rows = owns_rows(at);
                const double* const own =
                    by_rows ? at.row_sq + k * at.rows : at.col_sq + k * at.cols;
                double* const to_own = by_rows ? rows : cols;
                for (std::size_t i = 0; i < (by_rows ? at.rows : at.cols); ++i) to_own[i] += own[i];
                add_crossed(at, k, by_rows ? cols : rows, nullptr);
            }
    }

protected:
    std::size_t n_own_max() const override { return n() * kMaxima; }

    void put_own_max(double* to) const override {
        for (std::size_t m = 0; m < n() && !old_.empty(); ++m, to += kMaxima) {
            const OfMatrix& old = old_[m];
            to[0] = exponent_of(old.sum);
            to[1] = exponent_of(old.param_sq);
            to[2] = old.rows.largest_negated;
            to[3] = old.rows.largest;
            to[4] = old.cols.largest_negated;
            to[5] = old.cols.largest;
        }
    }

    void take_own_max(const double* from) override {
        exponents_.clear();
        all_old_.clear();
        for (std::size_t m = 0; m < n(); ++m, from += kMaxima) {
            exponents_.insert(exponents_.end(), from, from + kSums);
            all_old_.push_back({{from[2], from[3]}, {from[4], from[5]}, {}, {}});
        }
    }

    void derive(double* sums) override {
        double* const lines = sums + n() * kSums * kWords;
        for (std::size_t m = 0; m < n(); ++m) {
            const double old_sum =
                sum_of_words(sums + m * kSums * kWords, exponents_[m * kSums]).value();
            param_sq_[m] =
                sum_of_words(sums + (m * kSums + 1) * kWords, exponents_[m * kSums + 1]).value();
            derive_matrix(m, lines, old_sum);
        }
        finish_lines(lines);
    }

    // Of the sums of grad^2 over all lines, and of the old running means over rows.
    void derive_matrix(std::size_t m, double* lines, double old_sum) {
        SecondMoment& moment = moments_[m];
        moment.row_summary =
            summary_of(row_sums(lines, m), part_.n_rows, part_.n_cols, all_old_[m].rows);
        moment.col_summary =
            summary_of(col_sums(lines, m), part_.n_cols, part_.n_rows, all_old_[m].cols);
        // Running means are linear in the old ones and the sums: so is the sum of them.
        moment.row_summary.sum =
            running_mean(old_sum, moment.row_summary.sum_sq, double(part_.n_rows), part_.n_cols);
        moment.mean = mean_of_rows(moment.row_summary);
    }

    void finish_lines(double* lines) {
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) {
                const std::size_t m = at.box->matrices[k];
                finish_axis(rows_of(at, k), row_sums(lines, m) + at.box->row, part_.n_cols,
                            at.old_row + k * at.rows);
                finish_axis(cols_of(at, k), col_sums(lines, m) + at.box->col, part_.n_rows,
                            at.old_col + k * at.cols);
            }
    }

    bool always_second() const final { return true; }

    bool is_unusable() const override {
        const bool zero_is_fine = hyper_.eps_root > 0 || hyper_.root_floor > 0;
        return any_mean([&](double mean) {
            const double used = mean + hyper_.eps_means;
            return !(used > 0 || (used == 0 && zero_is_fine)) || std::isinf(used);
        });
    }

    bool overflows_here() const override {
        return tensor_.state_format == Format::float32 &&
               any_mean([](double mean) { return mean > kLargestFloat; });
    }

    static constexpr std::size_t kSums = 2, kMaxima = kSums + 4;  // of each matrix

    struct Extremes {
        double largest_negated = kNeutral, largest = kNeutral;
        void add(const double* x, std::size_t size) {
            for (std::size_t i = 0; i < size; ++i) {
                largest_negated = std::max(largest_negated, -x[i]);
                largest = std::max(largest, x[i]);
            }
        }
    };
    // Of the old running means, and the sum of those of rows; of param.
    struct OfMatrix {
        Extremes rows, cols;
        TwoWords sum, param_sq;
    };

    double* row_sums(double* lines, std::size_t m) const {
        return lines + m * (part_.n_rows + part_.n_cols);
    }
    double* col_sums(double* lines, std::size_t m) const {
        return row_sums(lines, m) + part_.n_rows;
    }

    // Of n lines' sum, each having `length` elements.
    double running_mean(double old, double sum_sq, double n_lines, std::size_t length) const {
        const double now = sum_sq * grad_sq_scale() / double(length);
        return hyper_.beta2 * old + (1 - hyper_.beta2) * (now + n_lines * hyper_.eps_squares);
    }

    // The sum of squares, and bounds of the running means, which are close enough to choose the
    // form of u by. Whether any is zero or less is found in round B.
    AxisSummary summary_of(const double* sum_sq, std::size_t size, std::size_t length,
                           const Extremes& old) const {
        TwoWords total;
        double least = std::numeric_limits<double>::infinity(), most = 0;
        for (std::size_t i = 0; i < size; ++i) {
            total.add(sum_sq[i]);
            if (sum_sq[i] != 0) least = std::min(least, sum_sq[i]);
            most = std::max(most, sum_sq[i]);
        }
        const double infinity = std::numeric_limits<double>::infinity();
        AxisSummary summary{};
        summary.sum_sq = total.value();
        summary.smallest = infinity;
        summary.smallest_live = infinity;
        if (most > 0) {
            const double floor = std::max(0., -old.largest_negated);
            summary.smallest_live = running_mean(floor, least, 1, length) + hyper_.eps_means;
            summary.largest_live = running_mean(old.largest, most, 1, length) + hyper_.eps_means;
        }
        return summary;
    }

    void finish_axis(const Axis& axis, double* sum_sq, std::size_t length,
                     const double* old) const {
        kernels_.add_groups({sum_sq, nullptr, 1, moment(), double(length), old}, 0, axis.size,
                            axis);
    }

    template <class Test>
    bool any_mean(const Test& test) const {
        const auto any = [&](const double* means, std::size_t size) {
            return std::any_of(means, means + size, test);
        };
        return std::any_of(boxes_.begin(), boxes_.end(), [&](const LocalBox& at) {
            return any(at.row_mean, at.n * at.rows) || any(at.col_mean, at.n * at.cols);
        });
    }

    std::vector<OfMatrix> old_, all_old_;  // of this rank, and of all
    std::vector<double> exponents_;
};

}  // namespace adafactor
